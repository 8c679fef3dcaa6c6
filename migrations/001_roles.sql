-- Three roles, none of which can log in: a deployment grants them to its own logins.
--
--   tasker_owner    owns the SQL surface, whose functions run with its rights (SECURITY DEFINER)
--   tasker_runtime  what a server runs as: DML on every table, no DDL
--   tasker_reader   people and dashboards: the SQL surface and nothing else
--
-- Roles belong to the whole cluster, so another database's migration may have made them already, or be making them now.
do $$
declare
  role_name text;
begin
  foreach role_name in array array['tasker_owner', 'tasker_runtime', 'tasker_reader'] loop
    if not exists (select from pg_roles where rolname = role_name) then
      begin
        execute format('create role %I nologin', role_name);
      exception when duplicate_object or unique_violation then
        null;
      end;
    end if;
  end loop;
  -- Whoever migrates hands the tables to the owner, and goes on changing them: both take membership.
  if not pg_has_role(current_user, 'tasker_owner', 'member') then
    execute format('grant tasker_owner to %I', current_user);
  end if;
end
$$;

---- create above / drop below ----

-- Roles are left in place: other databases of the cluster may use them.
select;
