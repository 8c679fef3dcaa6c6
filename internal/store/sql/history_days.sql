-- The days of history that end before $1, the oldest first. $1 before date
select day
from (
  select to_date(substring(child.relname from '^history_(\d{8})$'), 'YYYYMMDD') as day
  from pg_inherits
  join pg_class child on child.oid = pg_inherits.inhrelid
  where pg_inherits.inhparent = 'history'::regclass
) days
where day is not null and day < $1
order by day
