-- Retention drops whole partitions. The runtime role has no DDL, so it calls these functions, which run with their
-- owner's rights and refuse what would lose work: whatever the caller asks, nothing unfinished is dropped.
--
-- Dropping takes a short exclusive lock on the parent tables. It is asked for with a short lock_timeout, well below
-- deadlock_timeout: when traffic is in the way the call fails with 55P03, has done nothing, and is made again later.

create table partition_roll (
  first_number bigint primary key,             -- the first task number of the partition that became current
  rolled_at    timestamptz not null            -- no task of it, or of a later one, was created before
);
comment on table partition_roll is 'When task numbers moved on to a fresh partition.';
insert into partition_roll (first_number, rolled_at) values (0, now());
alter table partition_roll owner to tasker_owner;
grant select on partition_roll to tasker_runtime;

-- The way from a task to its idempotency key, for GetTask and PurgeTask.
create index submit_key_task on submit_key (task_id);

create function roll_task_numbers(shard int, min_age interval) returns bigint
language plpgsql security definer set search_path from current
as $$
declare
  last_number bigint;
  next_number bigint;
begin
  perform pg_advisory_xact_lock(hashtext('tasker.roll_task_numbers'));
  if (select max(rolled_at) from partition_roll) > clock_timestamp() - min_age then
    return null;
  end if;
  -- Locks out nextval until commit, so that no number handed out meanwhile is handed out again.
  alter sequence task_number_seq no cycle;
  select last_value into last_number from task_number_seq;
  if last_number >> 28 <= (select max(first_number) >> 28 from partition_roll)
     and not exists (
       select from task where task_id >= ((shard::bigint << 40 | (last_number >> 28 << 28)) << 14)
     ) then
    return null;                               -- nothing was submitted since: the current partition is still fresh
  end if;
  next_number := ((last_number >> 28) + 1) << 28;
  if next_number >= 1::bigint << 40 then
    return null;                               -- no fresh partition is left: the last one serves as long as its numbers do
  end if;
  perform ensure_task_partitions((shard::bigint << 40) | next_number, 2);
  execute format('alter sequence task_number_seq restart with %s', next_number);
  insert into partition_roll (first_number, rolled_at) values (next_number, clock_timestamp());
  return next_number;
end
$$;
comment on function roll_task_numbers(int, interval) is
  'Moves task numbers on to a fresh partition, unless that was done less than min_age ago or the current one is unused. Returns its first number, or NULL.';

create function drop_task_partition(part bigint, ended_before timestamptz) returns boolean
language plpgsql security definer set search_path from current
as $$
declare
  parents constant text[] := array['task', 'task_end', 'step', 'step_end', 'step_failure', 'late_report', 'join_wait', 'checkpoint'];
  first_id constant bigint := part << 42;
  end_id constant bigint := (part + 1) << 42;
  is_kept boolean;
  parent text;
begin
  if to_regclass(format('%I', 'task_p' || part)) is null then
    return false;
  end if;
  -- Servers take numbers in blocks and use them up later, so the partitions that numbers come from now, and came from
  -- until lately, are out of reach however empty they are.
  if (part & ((1 << 12) - 1)) >= (select (last_value >> 28) - 1 from task_number_seq) then
    return false;
  end if;
  perform set_config('lock_timeout', '100ms', true);
  -- From here on no task of it can be submitted or re-opened; both write to one of these two.
  execute format('lock table only %I, only %I in share mode', 'task_p' || part, 'task_end_p' || part);
  execute format(
    'select exists (
       select from %I as task
       where not exists (select from %I as task_end where task_end.task_id = task.task_id and task_end.ended_at < $1))',
    'task_p' || part, 'task_end_p' || part)
    into is_kept using ended_before;
  if is_kept then
    return false;
  end if;
  -- Tasks that ended in error left these.
  delete from parked where task_id >= first_id and task_id < end_id;
  delete from deadline where task_id >= first_id and task_id < end_id;
  foreach parent in array parents loop
    execute format('drop table %I', parent || '_p' || part);
  end loop;
  insert into partition_drop (partition, from_value, to_value) values ('task_p' || part, first_id::text, end_id::text);
  insert into history (recorded_at, kind, reason, task_ids)
  values (clock_timestamp(), 'retention', 'task_p' || part, array[first_id, end_id]);
  return true;
end
$$;
comment on function drop_task_partition(bigint, timestamptz) is
  'Drops partition part (task_id >> 42) with all that belongs to it, if every task in it ended before the given instant. Returns whether it did. 55P03: traffic is in the way, try later.';

create function drop_history_partition(day date) returns boolean
language plpgsql security definer set search_path from current
as $$
declare
  partition text := 'history_' || to_char(day, 'YYYYMMDD');
  first_unfinished bigint;
  begun_at timestamptz;
begin
  if day >= (clock_timestamp() at time zone 'utc')::date then
    return false;
  end if;
  -- An unfinished task has a live row. Ids rise with time to the grain of a partition, so the oldest unfinished task was
  -- created no earlier than the partition of the lowest unfinished id became current.
  select min(oldest.task_id) into first_unfinished
  from (
    (select task_id from ready order by task_id limit 1)
    union all
    (select task_id from backoff order by task_id limit 1)
    union all
    (select task_id from lease order by task_id limit 1)
    union all
    (select task_id from parked where not exists (select from task_end where task_end.task_id = parked.task_id)
     order by task_id limit 1)
  ) as oldest;
  if first_unfinished is not null then
    select rolled_at into begun_at
    from partition_roll
    where first_number <= (first_unfinished >> 14) & ((1::bigint << 40) - 1)
    order by first_number desc
    limit 1;
    if begun_at < ((day + 1)::timestamp at time zone 'utc') then
      return false;
    end if;
  end if;
  if to_regclass(format('%I', partition)) is not null then
    perform set_config('lock_timeout', '100ms', true);
    execute format('drop table %I', partition);
  else
    -- Days whose partition was made too late have their rows in the default one.
    delete from history_default
    where recorded_at >= day::timestamp at time zone 'utc' and recorded_at < (day + 1)::timestamp at time zone 'utc';
    if not found then
      return false;
    end if;
  end if;
  insert into partition_drop (partition, from_value, to_value) values (partition, day::text, (day + 1)::text);
  insert into history (recorded_at, kind, reason, task_ids) values (clock_timestamp(), 'retention', partition, '{}');
  return true;
end
$$;
comment on function drop_history_partition(date) is
  'Drops the history of a UTC day, unless a task that is still unfinished may have begun in or before it. Returns whether it did. 55P03: traffic is in the way, try later.';

revoke all on function roll_task_numbers(int, interval), drop_task_partition(bigint, timestamptz), drop_history_partition(date) from public;
grant execute on function roll_task_numbers(int, interval), drop_task_partition(bigint, timestamptz), drop_history_partition(date) to tasker_runtime;
alter function roll_task_numbers(int, interval) owner to tasker_owner;
alter function drop_task_partition(bigint, timestamptz) owner to tasker_owner;
alter function drop_history_partition(date) owner to tasker_owner;

---- create above / drop below ----

drop function drop_history_partition(date);
drop function drop_task_partition(bigint, timestamptz);
drop function roll_task_numbers(int, interval);
drop index submit_key_task;
drop table partition_roll;
