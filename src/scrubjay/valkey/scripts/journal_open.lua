-- Open a list in the journal: it goes on from what the store has.
--
-- KEYS: what is known of the list, what is pending of it.
-- ARGV: the epoch of its mark in the store, the last number, the version, the server's life, then the ids of calls without
--       an answer.
-- Returns 'new', 'open' (it was, under this epoch or another one), 'sealed' (under this epoch), or 'pending' (of an
--       earlier one).

local known = redis.call('HMGET', KEYS[1], 'o', 'e')
if known[1] == '1' then return 'open' end
if known[2] == ARGV[1] then return 'sealed' end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'pending' end
-- What is known of an earlier epoch is not needed any more: who could still open that has seen a later mark.
local fields = { 'o', '1', 'e', ARGV[1], 'q', ARGV[2], 'v', ARGV[3], 'r', ARGV[4], 'n', '0' }
for i = 5, #ARGV do
  fields[#fields + 1], fields[#fields + 2] = 'c' .. ARGV[i], '1'
end
redis.call('UNLINK', KEYS[1])
redis.call('HSET', KEYS[1], unpack(fields))
return 'new'
