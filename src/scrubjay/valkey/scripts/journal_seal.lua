-- Take no more appends of a list.
--
-- KEYS: what is known of the list, what is pending of it, its shard's counts, its shard's idle lists, what says that this
--       epoch was sealed.
-- ARGV: the epoch ('': any), what to do ('seal'; 'idle': seal, unless something is pending; 'release': it is sealed, and
--       its mark is gone; 'discard': seal, and drop what is pending), for how many ms it is remembered that it was sealed,
--       the list's name.
-- Returns how many entries were dropped; -1 if nothing was done: something is pending, or the epoch is another one.

local epoch, what, ms = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('HMGET', KEYS[1], 'e', 'o')
local known = held[1]
if known and epoch ~= '' and known ~= epoch then
  -- An earlier one that is over is in nobody's way: this one was marked, and never opened here.
  if held[2] or redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
  -- A server without memory refuses a script's first write only.
  redis.call('HDEL', KEYS[1], 'o')
  redis.call('SET', KEYS[5], '1', 'PX', ms)
  return 0
end
if what == 'idle' and redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
if what == 'release' and redis.call('HEXISTS', KEYS[1], 'o') == 1 then return -1 end
-- A field less takes no memory, of which there may be none left.
redis.call('HDEL', KEYS[1], 'o')
if epoch ~= '' then
  if not known then redis.call('HSET', KEYS[1], 'e', epoch) end
  -- Now, and not when it is released: its mark may be gone before that, another epoch have been opened and sealed in its
  -- place, and who was to open this one come only then.
  redis.call('SET', KEYS[5], '1', 'PX', ms)
end
local dropped = 0
if what == 'discard' then
  local bytes = 0
  for _, entry in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    dropped, bytes = dropped + 1, bytes + #entry
  end
  if dropped > 0 then
    redis.call('UNLINK', KEYS[2])
    redis.call('HINCRBY', KEYS[3], 'h', string.format('%.0f', -(dropped * 4294967296 + bytes)))
  end
end
if what == 'release' or what == 'discard' then
  redis.call('PEXPIRE', KEYS[1], ms)
  redis.call('ZREM', KEYS[4], ARGV[4])
end
return dropped
