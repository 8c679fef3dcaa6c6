-- The days of history that end before $1, the oldest first. $1 before date
select day
from (
  select to_date(substring(child.relname from '^history_(\d{8})$'), 'YYYYMMDD') as day
  from pg_inherits
  join pg_class child on child.oid = pg_inherits.inhrelid
  where pg_inherits.inhparent = 'history'::regclass
  union
  -- days whose partition was made too late
  select (recorded_at at time zone 'utc')::date from history_default
) days
where day is not null and day < $1
order by day
