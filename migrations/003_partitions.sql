-- Task partitions are cut by task number, 2^28 numbers each, so that any look-up by id prunes to one. There are few of them,
-- since a statement that looks for tasks by id prepares to look into each. The server makes
-- the next one ahead of time and moves the sequence to a fresh one once a week, which lets retention drop whole weeks.
-- The runtime role has no DDL: it calls these functions, which run with their owner's rights.

create function ensure_task_partitions(from_number bigint, partition_count int) returns int
language plpgsql security definer set search_path from current
as $$
declare
  width constant bigint := 1::bigint << 42;    -- 2^28 numbers << 14
  first_id bigint := (from_number >> 28) * width;
  parent text;
  made int := 0;
begin
  -- One maker at a time, over all servers.
  perform pg_advisory_xact_lock(hashtext('tasker.ensure_task_partitions'));
  for i in 0 .. partition_count - 1 loop
    foreach parent in array array['task', 'step', 'step_end', 'step_failure', 'late_report', 'task_end', 'join_wait', 'checkpoint'] loop
      if to_regclass(format('%I', parent || '_p' || ((first_id / width) + i))) is null then
        execute format('create table %I partition of %I for values from (%s) to (%s)',
          parent || '_p' || ((first_id / width) + i), parent, first_id + i * width, first_id + (i + 1) * width);
        -- All of them are found by their keys alone, and most are only inserted: they are looked at when they have grown by half
        -- for their visibility maps, and by as much as they held for their statistics, not every few seconds while young.
        execute format('alter table %I set (autovacuum_vacuum_insert_threshold = 100000, autovacuum_vacuum_insert_scale_factor = 0.5,
          autovacuum_analyze_threshold = 100000, autovacuum_analyze_scale_factor = 1)', parent || '_p' || ((first_id / width) + i));
        if parent in ('join_wait', 'checkpoint') then
          execute format('alter table %I set (fillfactor = 60)', parent || '_p' || ((first_id / width) + i));
        end if;
        made := made + 1;
      end if;
    end loop;
  end loop;
  return made;
end
$$;
comment on function ensure_task_partitions(bigint, int) is 'Makes the partition of a task number and those after it. Returns how many tables were made.';

create function ensure_history_partitions(from_day date, day_count int) returns int
language plpgsql security definer set search_path from current
as $$
declare
  day date;
  made int := 0;
begin
  perform pg_advisory_xact_lock(hashtext('tasker.ensure_history_partitions'));
  for i in 0 .. day_count - 1 loop
    day := from_day + i;
    if to_regclass(format('%I', 'history_' || to_char(day, 'YYYYMMDD'))) is null then
      -- Days are UTC days, whatever the session's time zone.
      execute format('create table %I partition of history for values from (%L) to (%L)',
        'history_' || to_char(day, 'YYYYMMDD'), day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
      -- It is read whole, so its statistics decide nothing, and those of long arrays are the dearest of all.
      execute format('alter table %I set (autovacuum_vacuum_insert_threshold = 100000, autovacuum_vacuum_insert_scale_factor = 0.5,
        autovacuum_analyze_threshold = 2147483647, autovacuum_analyze_scale_factor = 0)', 'history_' || to_char(day, 'YYYYMMDD'));
      made := made + 1;
    end if;
  end loop;
  return made;
end
$$;
comment on function ensure_history_partitions(date, int) is 'Makes the history partitions of a UTC day and those after it. Returns how many were made.';

select ensure_task_partitions(0, 2);
select ensure_history_partitions((now() at time zone 'utc')::date, 3);

revoke all on function ensure_task_partitions(bigint, int), ensure_history_partitions(date, int) from public;
grant execute on function ensure_task_partitions(bigint, int), ensure_history_partitions(date, int) to tasker_runtime;

-- The owner owns the tables, so that its SECURITY DEFINER functions may read them and make partitions.
do $$
declare
  object record;
begin
  execute format('grant usage, create on schema %I to tasker_owner', current_schema());
  execute format('grant usage on schema %I to tasker_runtime, tasker_reader', current_schema());
  for object in
    select c.oid::regclass as name, c.relkind
    from pg_class c
    where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'S')
      and c.relname not in ('schema_version')
      -- a sequence owned by an identity column follows its table
      and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i' and c.relkind = 'S')
    order by c.relkind desc
  loop
    execute format('alter %s %s owner to tasker_owner', case object.relkind when 'S' then 'sequence' else 'table' end, object.name);
    if object.relkind = 'S' then
      execute format('grant usage, select, update on sequence %s to tasker_runtime', object.name);
    else
      execute format('grant select, insert, update, delete on %s to tasker_runtime', object.name);
    end if;
  end loop;
end
$$;
alter function ensure_task_partitions(bigint, int) owner to tasker_owner;
alter function ensure_history_partitions(date, int) owner to tasker_owner;

---- create above / drop below ----

drop function ensure_history_partitions(date, int);
drop function ensure_task_partitions(bigint, int);
