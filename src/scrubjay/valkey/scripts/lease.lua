-- Ask for the right to fill a key, whatever is there.
--
-- KEYS: the owner's generation, the lease.
-- ARGV: a new random id, lease ms, generation ms.
-- Returns the generation, and whether the lease was granted.

local generation = redis.pcall('GET', KEYS[1])
if type(generation) ~= 'string' or #generation > 64 or not string.find(generation, '^[%w_%-]+$') then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
  generation = ARGV[1]
end
local set = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
return { generation, set and 1 or 0 }
