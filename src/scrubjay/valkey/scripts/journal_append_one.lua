-- Append one entry that has nothing special to a list that is open in the journal, while whoever appends has left the
-- cached list behind: what most appends are, in as few steps as can be. `journal_append.lua` does all the others.
--
-- KEYS: what is known of the list, what is pending of it, its shard's stream, its shard's counts, the cached list, its
--       lease.
-- ARGV: the server's life, the epoch, the most entries and the most bytes that may be pending in the shard, the list's name
--       in the stream, what the cached list's header begins with where it was left behind, then the text before the entry's
--       number and the text after it.
-- Returns the list's version and the number, as one text; nil if it has to be done in the usual way: nothing was done.

local known = redis.call('HMGET', KEYS[1], 'o', 'e', 's', 'r')
local header = redis.pcall('LINDEX', KEYS[5], 0)
if known[1] ~= '1' or known[2] ~= ARGV[2] or known[4] ~= ARGV[1] or type(header) ~= 'string'
  or string.sub(header, 1, #ARGV[6]) ~= ARGV[6] or redis.call('EXISTS', KEYS[6]) == 1 then
  return nil
end
local number, version, place = string.match(known[3], '^(%d+) (%d+) (%d+)$')
local format = string.format
number, version, place = format('%.0f', number + 1), format('%.0f', version + 1), format('%.0f', place + 1)
local entry = place .. ' ' .. version .. ' ' .. ARGV[7] .. number .. ARGV[8]
-- Entries and bytes in one number. A server without memory refuses a script's first write, so nothing is half done.
local more = 4294967296 + #entry
local before = redis.call('HINCRBY', KEYS[4], 'h', more) - more
if before / 4294967296 >= tonumber(ARGV[3]) or before % 4294967296 >= tonumber(ARGV[4]) then
  redis.call('HINCRBY', KEYS[4], 'h', -more)
  return nil
end
local length = redis.call('RPUSH', KEYS[2], entry)
redis.call('HSET', KEYS[1], 's', number .. ' ' .. version .. ' ' .. place)
-- One word in the stream for all that is pending of a list.
if length == 1 then redis.call('XADD', KEYS[3], '*', 'l', ARGV[5]) end
return version .. ' ' .. number
