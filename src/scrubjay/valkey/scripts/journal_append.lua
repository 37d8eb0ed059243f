-- Append to a list that is open in the journal: all of it or nothing.
--
-- The functions `settle` and `apply` stand before it: `apply.lua`, by which a cache on the same server is told in the
-- same step.
--
-- KEYS: what is known of the list, what is pending of it, its shard's stream, its shard's counts; then, if the cache is on
--       this server, the list's key there, and its lease.
-- ARGV: the server's life, the epoch under which it must be open ('': any), the most entries and the most bytes that may
--       be pending in the shard, the list's name in the stream; for the cache the store's life, the most items kept, ttl ms,
--       the channel that changes are published on, the one of the process that publishes, its name, and 1 if that holds the
--       list in its memory; then each entry:
--       '' for one that has nothing special, or its number (-1: the next), its id ('': none), the call that it answers
--       ('': none), how many calls it makes, and those; then the text before its number and the text after it.
-- Returns why not, as text; or the list's epoch, its version (negative, if a number was not above those before it: then
-- the cached list is dropped), '1' if the cached list is left behind, and the numbers.

local known = redis.call('HMGET', KEYS[1], 'o', 'e', 's', 'r')
if known[1] ~= '1' or (ARGV[2] ~= '' and ARGV[2] ~= known[2]) then return 'closed' end
-- A server that was started anew may have lost what the store has got of it already: it would give the same versions again.
if known[4] ~= ARGV[1] then return 'restarted' end
local format = string.format
local number, was, place = string.match(known[3], '^(%d+) (%d+) (%d+)$')
number, place = tonumber(number), tonumber(place)
local version = tonumber(was)
local reply, entries, items, bytes = { known[2], '', '' }, {}, {}, 0
local rising = true
local gained, lost = {}, {} -- fields of what is known: ids and calls
local at = 13
while ARGV[at] do
  local mine = number + 1
  if ARGV[at] == '' then
    at = at + 1
  else
    local id, answers, calls = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    if ARGV[at] ~= '-1' then mine = tonumber(ARGV[at]) end
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
  end
  -- Each has a version of its own: wherever what is pending is parted, a version says how far it goes.
  place, version = place + 1, version + 1
  if mine > number then number = mine else rising = false end
  local text = format('%.0f', mine)
  local item = ARGV[at] .. text .. ARGV[at + 1]
  local entry = format('%.0f %.0f ', place, version) .. item
  local count = #entries + 1
  items[count], entries[count], reply[count + 3], bytes = item, entry, text, bytes + #entry
  at = at + 2
end

version = format('%.0f', version)
reply[2] = rising and version or '-' .. version
-- Entries and bytes in one number. A server without memory refuses a script's first write, so nothing is half done.
local more = #entries * 4294967296 + bytes
local before = redis.call('HINCRBY', KEYS[4], 'h', more) - more
if before / 4294967296 >= tonumber(ARGV[3]) or before % 4294967296 >= tonumber(ARGV[4]) then
  redis.call('HINCRBY', KEYS[4], 'h', -more)
  return 'full'
end
local length = 0
for first = 1, #entries, 1000 do
  length = redis.call('RPUSH', KEYS[2], unpack(entries, first, math.min(first + 999, #entries)))
end
redis.call('HSET', KEYS[1], 's', format('%.0f %s %.0f', number, version, place))
for field in pairs(gained) do redis.call('HSET', KEYS[1], field, '1') end
for field in pairs(lost) do redis.call('HDEL', KEYS[1], field) end
-- One word in the stream for all that is pending of a list.
if length == #entries then redis.call('XADD', KEYS[3], '*', 'l', ARGV[5]) end
if not KEYS[5] then return reply end

local key, leased = KEYS[5], redis.call('EXISTS', KEYS[6]) == 1
local header = redis.pcall('LINDEX', key, 0)
local behind = 'behind;' .. ARGV[11] .. ';'
-- The process that appends has it in memory, and left it behind when nobody else had. Whoever has read it since then has
-- settled it first.
if rising and not leased and type(header) == 'string' and string.sub(header, 1, #behind) == behind then
  reply[3] = '1'
  return reply
end

-- The process that appends knows of it: where nobody else listens, nothing has to be said. Its line has both channels or
-- none, so one subscriber of each is that line. A replica passes on what is published, and may have other listeners; also
-- one that was here not long ago and comes back: as long as that is possible, there is a backlog for it.
local function alone(channel, own)
  local heard = redis.pcall('PUBSUB', 'NUMSUB', channel, own)
  if heard[2] ~= 1 or heard[4] ~= 1 then return false end
  local facts = redis.pcall('INFO', 'replication')
  return type(facts) == 'string' and string.find(facts, 'connected_slaves:0\r', 1, true)
    and string.find(facts, 'repl_backlog_active:0\r', 1, true) and string.find(facts, 'role:master\r', 1, true)
end

local channel, line, later = ARGV[9], '', false
if channel ~= '' then
  if alone(channel, ARGV[10]) then channel, later = '', ARGV[12] == '1' end
  line = '1;' .. ARGV[11] .. ';c;' .. version .. ';' .. key
end
if later and not leased and header == false then
  -- Nor does anybody hold what is not cached. Whoever reads it finds that there is nothing, and loads it.
  reply[3] = '1'
  redis.call('RPUSH', key, behind)
  if ARGV[8] ~= '0' then redis.call('PEXPIRE', key, ARGV[8]) end
elseif leased or header then
  -- What is most frequent is done here, and not there: a list that is just one append behind.
  local before_, life, shown, rest, count, whole
  if rising and not leased and type(header) == 'string' then
    before_, life, shown, rest, count, whole = string.match(header, '^(1;([^;]+);[^;]+;)(%d+)(;[^;]+;)(%d+);([wp]);')
  end
  local fits = shown == was and life == ARGV[6]
  if fits and later then
    reply[3] = '1'
    redis.call('LSET', key, 0, behind .. ARGV[7] .. ';' .. KEYS[1] .. ';' .. KEYS[2] .. ';' .. header)
  elseif fits and #items == 1 then
    local held, keep = redis.call('RPUSH', key, items[1]) - 1, tonumber(ARGV[7])
    if held ~= count + 1 then
      redis.call('UNLINK', key)
    else
      if held > keep then
        redis.call('LPOP', key, held - keep)
        held, whole = keep, 'p'
      end
      redis.call('LSET', key, 0, before_ .. version .. rest .. held .. ';' .. whole .. ';' .. ARGV[8])
      if ARGV[8] ~= '0' then redis.call('PEXPIRE', key, ARGV[8]) else redis.call('PERSIST', key) end
    end
  else
    local told = { ARGV[6], rising and '4' or '0', version, was, ARGV[7], ARGV[8], channel, line, '0' }
    for i = 1, #items do told[i + 9] = items[i] end
    apply({ key, KEYS[6] }, told)
    channel = ''
  end
end
if channel ~= '' then redis.pcall('PUBLISH', channel, line) end
return reply
