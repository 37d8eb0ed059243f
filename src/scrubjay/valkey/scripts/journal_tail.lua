-- Read what the journal holds of a list, in one step.
--
-- KEYS: what is known of the list, what is pending of it.
-- ARGV: the most entries.
-- Returns its epoch ('': nothing is known), '1' if it is open, then the oldest entries, one more than the most if there
--       are more.

local known = redis.call('HMGET', KEYS[1], 'e', 'o')
local reply = { known[1] or '', known[2] or '0' }
for _, entry in ipairs(redis.call('LRANGE', KEYS[2], 0, ARGV[1])) do reply[#reply + 1] = entry end
return reply
