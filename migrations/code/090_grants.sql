-- Who may use what. The SQL surface runs with its owner's rights; nobody else needs any right on a table.
--
-- "set search_path from current" pins the schema but leaves pg_temp in front of it, where a caller could plant a table of
-- the same name. Every function that runs with its owner's rights gets a path with pg_temp at the end instead.
do $$
declare
  object record;
begin
  for object in
    select p.oid::regprocedure as name
    from pg_proc p
    where p.pronamespace = current_schema()::regnamespace
      and p.proname in ('get_step_readiness_status', 'get_step_readiness_status_batch', 'get_task_execution_context',
        'get_task_execution_contexts_batch', 'calculate_dependency_levels')
  loop
    execute format('alter function %s owner to tasker_owner', object.name);
    execute format('revoke all on function %s from public', object.name);
    execute format('grant execute on function %s to tasker_reader, tasker_runtime', object.name);
  end loop;

  for object in
    select p.oid::regprocedure as name
    from pg_proc p
    where p.pronamespace = current_schema()::regnamespace
      and p.proname in ('steps_of_task_at', 'step_readiness_at', 'task_state_at', 'task_execution_at', 'dependency_levels',
        'circuit_room', 'circuit_admits', 'circuit_waiting', 'circuit_word', 'circuit_until', 'lane_front', 'circuits_shut_for', 'deadline_end', 'elapsed_end', 'pauses_over')
  loop
    execute format('alter function %s owner to tasker_owner', object.name);
    execute format('revoke all on function %s from public', object.name);
    execute format('grant execute on function %s to tasker_runtime', object.name);
  end loop;

  for object in
    select c.oid::regclass as name
    from pg_class c
    where c.relnamespace = current_schema()::regnamespace and c.relkind = 'v'
      and c.relname in ('step_attempts_v', 'history_v', 'system_health_counts', 'slowest_steps', 'circuit_health', 'circuit_events_v', 'pauses_v')
  loop
    execute format('alter view %s owner to tasker_owner', object.name);
    execute format('revoke all on %s from public', object.name);
    execute format('grant select on %s to tasker_reader, tasker_runtime', object.name);
  end loop;

  for object in
    select p.oid::regprocedure as name
    from pg_proc p
    where p.pronamespace = current_schema()::regnamespace and p.prosecdef
      and p.proowner = 'tasker_owner'::regrole
  loop
    execute format('alter function %s set search_path = %I, pg_temp', object.name, current_schema());
  end loop;
end
$$;

-- A server looks at the schema's version before it says that it is ready.
grant select on schema_version, schema_code to tasker_runtime;
