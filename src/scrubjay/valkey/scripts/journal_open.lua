-- Open a list in the journal: it goes on from what the store has.
--
-- KEYS: what is known of the list, what is pending of it, what says that this epoch was sealed, its shard's idle lists.
-- ARGV: the epoch of its mark in the store, the last number, the version, the server's life, the list's name, then the
--       ids of calls without an answer.
-- Returns 'new', 'open' (it was, under this epoch or another one), 'sealed' (under this epoch), or 'pending' (of an
--       earlier one).

local known = redis.call('HMGET', KEYS[1], 'o', 'e')
if known[1] == '1' then return 'open' end
-- Another epoch may have come and gone since: each that was sealed is remembered by itself.
if known[2] == ARGV[1] or redis.call('EXISTS', KEYS[3]) == 1 then return 'sealed' end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'pending' end
-- The last number, the version, and the last place.
local fields = { 'o', '1', 'e', ARGV[1], 's', ARGV[2] .. ' ' .. ARGV[3] .. ' 0', 'r', ARGV[4] }
for i = 6, #ARGV do
  fields[#fields + 1], fields[#fields + 2] = 'c' .. ARGV[i], '1'
end
redis.call('UNLINK', KEYS[1])
for first = 1, #fields, 1000 do
  redis.call('HSET', KEYS[1], unpack(fields, first, math.min(first + 999, #fields)))
end
-- Whoever opens it may die before it appends.
redis.call('ZADD', KEYS[4], redis.call('TIME')[1], ARGV[5])
return 'new'
