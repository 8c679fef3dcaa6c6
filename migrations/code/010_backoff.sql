-- The one definition of a delay. Nothing else, in SQL or Go, computes one.
--
-- delay(f) = least(initial * multiplier^(f - 1), maximum), for the f-th failed conclusion since the last reset.
-- With the defaults that is the seed's least(2^f, 30) seconds: 2, 4, 8, 16, 30, 30 …
--
-- Pure: no clock, no time zone, no table. NULL settings mean the defaults. The comparison is made between logarithms, so
-- that no failure count, however large, overflows power() or interval: the seed's own expression raises
-- "interval out of range" from 44 attempts on. The result counts seconds only, never days, so that adding it to an
-- instant means the same in every time zone.
create or replace function backoff_delay(failures int, initial interval, multiplier float8, maximum interval)
returns interval
language sql immutable parallel safe
as $$
  select case
    when failures < 1 or p.initial_s <= 0 then interval '0'
    when p.initial_s >= p.maximum_s
      or ln(p.initial_s) + (failures::float8 - 1) * ln(p.multiplier) >= ln(p.maximum_s)
      then make_interval(secs => p.maximum_s)
    else make_interval(secs => p.initial_s * power(p.multiplier, failures - 1))
  end
  from (
    select
      coalesce(extract(epoch from initial), 2)::float8 as initial_s,
      greatest(coalesce(multiplier, 2), 1) as multiplier,
      least(greatest(coalesce(extract(epoch from maximum), 30)::float8, 0), 31536000) as maximum_s
  ) p
$$;
comment on function backoff_delay(int, interval, float8, interval) is
  'Delay after the failures-th failed conclusion: least(initial * multiplier^(failures-1), maximum). NULL settings: 2 s, 2, 30 s. Jitter is added where the delay is stored.';
