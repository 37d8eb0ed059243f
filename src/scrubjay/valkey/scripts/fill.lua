-- Fill one entry, if the lease still lives and the owner's generation is still the one it was granted under.
--
-- KEYS: key, lease, generation.
-- ARGV: lease token, generation, shape, ttl ms (0: none), header (VALUE: the whole entry), then the items (HASH: fields
--       and values in turn).
-- Returns 1 if it was filled, 0 if not.

-- The lease is its holder's token, and after it the channels of those who wait.
local held = redis.pcall('GET', KEYS[2])
if type(held) ~= 'string' or string.match(held, '^[^|]*') ~= ARGV[1] then return 0 end

local function free()
  redis.call('UNLINK', KEYS[2])
  for waiter in string.gmatch(held, '|([^|]+)') do redis.pcall('PUBLISH', waiter, 'f' .. KEYS[2]) end
end

if redis.pcall('GET', KEYS[3]) ~= ARGV[2] then
  free()
  return 0
end

local key, shape, ttl = KEYS[1], ARGV[3], ARGV[4]

local function write()
  -- A server that is out of memory refuses only a script's first write, so that has to be the one that takes memory.
  if redis.call('EXISTS', key) == 1 then redis.call('UNLINK', key) end
  if shape == 'v' then
    redis.call('SET', key, ARGV[5])
  elseif shape == 'h' then
    redis.call('HSET', key, '\000', ARGV[5])
  else
    redis.call('RPUSH', key, ARGV[5])
  end
  -- In pieces: Lua's stack is bounded.
  for first = 6, #ARGV, 1000 do
    redis.call(shape == 'h' and 'HSET' or 'RPUSH', key, unpack(ARGV, first, math.min(first + 999, #ARGV)))
  end
  if ttl ~= '0' then redis.call('PEXPIRE', key, ttl) end
end

local filled = pcall(write)
free()
if filled then return 1 end
redis.call('UNLINK', key)
return 0
