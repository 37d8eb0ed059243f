-- Put one whole value, whatever is there: for owners of data that keep no versions. The lease goes, so that no load begun
-- before can fill.
--
-- KEYS: key, lease, generation.
-- ARGV: a new random id, generation ms, what stands before and after the generation in the header, ttl ms, payload, the
--       channel that changes are published on ('': none), what is published.
-- Returns 1.

local generation = redis.pcall('GET', KEYS[3])
if type(generation) ~= 'string' or #generation > 64 or not string.find(generation, '^[%w_%-]+$') then
  generation = ARGV[1]
  redis.call('SET', KEYS[3], generation, 'PX', ARGV[2])
end
redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('SET', KEYS[1], ARGV[3] .. generation .. ARGV[4] .. '\n' .. ARGV[6], 'PX', ARGV[5])
if ARGV[7] ~= '' then redis.pcall('PUBLISH', ARGV[7], ARGV[8]) end
return 1
