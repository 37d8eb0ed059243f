-- Bring a cached list up to what the journal has of it, where whoever appends to it holds it in memory and has left it
-- behind.
--
-- Its header says so: `behind;<who>;<most items kept>;<key of what is known>;<key of what is pending>;<header as it was>`,
-- or `behind;<who>;` where nothing was cached. What it lacks is pending: nothing is taken from there before the list has
-- been settled. Where it is not there after all, or there is no memory for it, the list goes.
--
-- KEYS: key.
-- Returns what stands first in the list now; false if there is none, or an error if it is no list.

local key = KEYS[1]
local found = redis.pcall('LINDEX', key, 0)
if type(found) ~= 'string' or string.sub(found, 1, 7) ~= 'behind;' then return found end

local PATTERN = '^behind;[^;]*;(%d+);([^;]+);([^;]+);(1;[^;]+;[^;]+;)(%d+)(;[^;]+;)(%d+);([wp]);(%d+)$'

local function brought()
  local keep, known, pending, first, shown, middle, count, whole, ttl = string.match(found, PATTERN)
  local state = keep and redis.pcall('HGET', known, 's')
  if type(state) ~= 'string' then return nil end
  local version = string.match(state, ' (%d+) ')
  local wanted = tonumber(version) - tonumber(shown)
  keep, count = tonumber(keep), tonumber(count)
  if wanted < 0 or redis.call('LLEN', key) - 1 ~= count then return nil end

  local taken = math.min(wanted, keep)
  local entries = taken > 0 and redis.pcall('LRANGE', pending, -taken, -1) or {}
  -- An error has no length.
  if #entries ~= taken then return nil end
  for i = 1, taken do
    local of, item = string.match(entries[i], '^%d+ (%d+) (.*)$')
    -- Each version was made by one entry.
    if tonumber(of) ~= tonumber(version) - taken + i then return nil end
    entries[i] = item
  end
  -- In pieces: Lua's stack is bounded.
  for from = 1, taken, 1000 do
    local pushed = redis.pcall('RPUSH', key, unpack(entries, from, math.min(from + 999, taken)))
    if type(pushed) ~= 'number' then return nil end
  end
  if count + wanted > keep then whole = 'p' end
  count = count + taken
  if count > keep then
    -- The header takes the place of the last one that goes.
    redis.call('LPOP', key, count - keep)
    count = keep
  end
  local header = first .. version .. middle .. string.format('%d', count) .. ';' .. whole .. ';' .. ttl
  redis.call('LSET', key, 0, header)
  if ttl ~= '0' then redis.call('PEXPIRE', key, ttl) else redis.call('PERSIST', key) end
  return header
end

local header = brought()
if not header then redis.call('UNLINK', key) end
return header or false
