-- A partition of tasks is made when it is about to be needed. Each statement that finds tasks by id prepares to look into all of
-- them, which is a fifth of what a claim of one step costs beside two. So the server makes the next one when the numbers of the
-- current one run out (store.EnsurePartitions), and a roll the one it moves to.

create or replace function roll_task_numbers(shard int, min_age interval) returns bigint
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
  perform ensure_task_partitions((shard::bigint << 40) | next_number, 1);
  execute format('alter sequence task_number_seq restart with %s', next_number);
  insert into partition_roll (first_number, rolled_at) values (next_number, clock_timestamp());
  return next_number;
end
$$;

-- The one that was made ahead goes from a database that never had a task. In any other it is in use, or the next to be. Not only the
-- sequence is asked: one that has moved to a fresh partition looks as if it had given out nothing. Rolls wait for the lock, so the
-- sequence cannot move to the partition while it goes.
do $$
declare
  parent text;
begin
  perform pg_advisory_xact_lock(hashtext('tasker.roll_task_numbers'));
  if (select not is_called and last_value >> 28 = 0 from task_number_seq) and (select count(*) = 1 from partition_roll)
     and not exists (select from task) then
    foreach parent in array array['task', 'step', 'step_end', 'step_failure', 'late_report', 'task_end', 'join_wait', 'checkpoint'] loop
      execute format('drop table if exists %I', parent || '_p1');
    end loop;
  end if;
end
$$;

---- create above / drop below ----

-- roll_task_numbers may stay as it is: the release before makes the next partition itself, within minutes.
select;
