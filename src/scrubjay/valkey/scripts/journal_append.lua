-- Append to a list that is open in the journal: all of it or nothing.
--
-- The function `apply` stands before it: `apply.lua`, by which a cache on the same server is told in the same step.
--
-- KEYS: what is known of the list, what is pending of it, its shard's stream, its shard's counts; then, if the cache is on
--       this server, the list's key there, and its lease.
-- ARGV: the server's life, the epoch under which it must be open ('': any), the most entries and the most bytes that may
--       be pending in the shard, the list's name in the stream; for the cache the store's life, the most items kept, ttl ms,
--       the channel that changes are published on, and who publishes; then, for each entry, its number (-1: the next), its
--       id ('': none), the call that it answers ('': none), how many calls it makes, those, the text before its number and
--       the text after it.
-- Returns why not, as text; or the list's epoch, its version, and the numbers.

local known = redis.call('HMGET', KEYS[1], 'o', 'e', 'q', 'v', 'n', 'r')
if known[1] ~= '1' or (ARGV[2] ~= '' and ARGV[2] ~= known[2]) then return 'closed' end
-- A server that was started anew may have lost what the store has got of it already: it would give the same versions again.
if known[6] ~= ARGV[1] then return 'restarted' end
local number, version, place = tonumber(known[3]), tonumber(known[4]), tonumber(known[5])
local reply, entries, bytes = { known[2], '' }, {}, 0
local gained, lost = {}, {} -- fields of what is known: ids and calls
local told = { ARGV[6], '4', '', known[4], ARGV[7], ARGV[8], ARGV[9], '', '0' } -- what `apply` is told
local at = 11
while ARGV[at] do
  local id, answers, calls = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local mine = ARGV[at] == '-1' and number + 1 or tonumber(ARGV[at])
  if id ~= '' then
    local field = 'i' .. id
    if gained[field] or redis.call('HEXISTS', KEYS[1], field) == 1 then return 'twice' end
    gained[field] = '1'
  end
  for i = at + 4, at + 3 + calls do gained['c' .. ARGV[i]], lost['c' .. ARGV[i]] = '1', nil end
  if answers ~= '' then
    local field = 'c' .. answers
    if lost[field] or not (gained[field] or redis.call('HEXISTS', KEYS[1], field) == 1) then return 'call' end
    gained[field], lost[field] = nil, '1'
  end
  at = at + 4 + calls
  -- Each has a version of its own: wherever what is pending is parted, a version says how far it goes.
  place, version = place + 1, version + 1
  if mine > number then number = mine end
  local text = string.format('%.0f', mine)
  local item = ARGV[at] .. text .. ARGV[at + 1]
  local entry = string.format('%.0f %.0f ', place, version) .. item
  told[#told + 1] = item
  entries[#entries + 1], reply[#reply + 1], bytes = entry, text, bytes + #entry
  at = at + 2
end

version = string.format('%.0f', version)
reply[2], told[3] = version, version
-- Entries and bytes in one number. A server without memory refuses a script's first write, so nothing is half done.
local more = #entries * 4294967296 + bytes
local held = redis.call('HINCRBY', KEYS[4], 'h', string.format('%.0f', more))
local before = held - more
if before / 4294967296 >= tonumber(ARGV[3]) or before % 4294967296 >= tonumber(ARGV[4]) then
  redis.call('HINCRBY', KEYS[4], 'h', string.format('%.0f', -more))
  return 'full'
end
local length = 0
for first = 1, #entries, 1000 do
  length = redis.call('RPUSH', KEYS[2], unpack(entries, first, math.min(first + 999, #entries)))
end
redis.call('HSET', KEYS[1], 'q', string.format('%.0f', number), 'v', version, 'n', string.format('%.0f', place))
for field in pairs(gained) do redis.call('HSET', KEYS[1], field, '1') end
for field in pairs(lost) do redis.call('HDEL', KEYS[1], field) end
-- One word in the stream for all that is pending of a list.
if length == #entries then redis.call('XADD', KEYS[3], '*', 'l', ARGV[5]) end
if KEYS[5] then
  if ARGV[9] ~= '' then told[8] = '1;' .. ARGV[10] .. ';c;' .. version .. ';' .. KEYS[5] end
  apply({ KEYS[5], KEYS[6] }, told)
end
return reply
