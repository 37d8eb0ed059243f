-- Apply one committed write to its entry, if that is complete and exactly one version behind. The lease always goes, so
-- that no load begun before the write can fill.
--
-- The function `settle` stands before it: `settle.lua`.
--
-- KEYS: key, lease.
-- ARGV: the store's life, operation, version, previous version, most items kept, ttl ms (0: none), the channel that
--       changes are published on ('': none), what is published, 1 if only those need it who do not hear from the server
--       itself that the key has changed, then the items (PUT, REPLACE: fields and values in turn; DELETE: fields; APPEND:
--       items).
-- Returns 0 if there was nothing, 1 if it was applied, 2 if the entry had it already, 3 if the entry was deleted.

local DROP, PUT, DELETE, REPLACE, APPEND, TRIM = '0', '1', '2', '3', '4', '5'
local PATTERN = '^1;([%w_%-]+);([%w_%-]+);(%d+);([%w_%-]+);(%d+);([wp]);%d+[;%d]*$'
local key, op, version, keep, ttl = KEYS[1], ARGV[2], ARGV[3], tonumber(ARGV[5]), ARGV[6]
local tracked = ARGV[9] == '1'

local held = redis.pcall('GET', KEYS[2])
if held then
  redis.call('UNLINK', KEYS[2])
  if type(held) == 'string' then
    for waiter in string.gmatch(held, '|([^|]+)') do redis.pcall('PUBLISH', waiter, 'f' .. KEYS[2]) end
  end
end
-- An access list may forbid channels: then no process hears its own heartbeat, and none trusts what it holds itself.
local function tell()
  if ARGV[7] ~= '' then redis.pcall('PUBLISH', ARGV[7], ARGV[8]) end
end
if not tracked then tell() end

-- Of a key that is left as it was the server says nothing, and yet a process may hold what it has loaded from the store.
local function unchanged(result)
  if tracked then tell() end
  return result
end

local function drop()
  if redis.call('UNLINK', key) == 0 then return unchanged(0) end
  return 3
end

if op == DROP then return drop() end

local is_list = op == APPEND or op == TRIM
local header
if is_list then header = settle({ key }) else header = redis.pcall('HGET', key, '\000') end
if type(header) ~= 'string' then return drop() end
local incarnation, generation, shown, key_id, count, whole = string.match(header, PATTERN)
if not incarnation or incarnation ~= ARGV[1] then return drop() end
if tonumber(shown) >= tonumber(version) then return unchanged(2) end
if tonumber(shown) ~= tonumber(ARGV[4]) then return drop() end
count = tonumber(count)
if op ~= APPEND and redis.call(is_list and 'LLEN' or 'HLEN', key) - 1 ~= count then return drop() end

-- In pieces: Lua's stack is bounded. Returns what the last one did.
local function each(command)
  local reply
  for first = 10, #ARGV, 1000 do
    reply = redis.call(command, key, unpack(ARGV, first, math.min(first + 999, #ARGV)))
  end
  return reply
end

local function encode(items)
  return table.concat({
    '1', incarnation, generation, version, key_id, string.format('%d', items), whole, ttl
  }, ';')
end

local function change_list()
  local items = count
  if op == APPEND then
    items = (each('RPUSH') or redis.call('LLEN', key)) - 1
    if items - #ARGV + 9 ~= count then error('another number of items than the header says') end
  end
  if items > keep then
    -- What APPEND cuts, the store still has; what TRIM cuts was cut there as well. The header takes the last one's place.
    if op == APPEND then whole = 'p' end
    redis.call('LPOP', key, items - keep)
    items = keep
  end
  redis.call('LSET', key, 0, encode(items))
end

local function change_hash()
  if op == REPLACE then
    redis.call('UNLINK', key)
    whole = 'w'
  end
  each(op == DELETE and 'HDEL' or 'HSET')
  local fields = redis.call('HLEN', key)
  if op ~= REPLACE then fields = fields - 1 end
  redis.call('HSET', key, '\000', encode(fields))
end

local function change()
  if is_list then change_list() else change_hash() end
  if ttl ~= '0' then redis.call('PEXPIRE', key, ttl) else redis.call('PERSIST', key) end
end

-- Out of memory, or anything else: half a change must not be read as a whole entry.
if pcall(change) then return 1 end
return drop()
