-- Charges the rate of circuits with the steps that this transaction has just granted: theirs are the leases that it wrote.
-- $1 at timestamptz, $2 circuit_id int[] (locked by this transaction for itself)
with started as materialized (
  select wanted.circuit_id, n.steps / policy.rate as seconds
  from unnest($2::int[]) as wanted (circuit_id)
  cross join lateral (
    select circuit.policy as own, n.circuit_defaults as defaults
    from circuit
    cross join lateral (select namespace.circuit_defaults from namespace where namespace.namespace_id = circuit.namespace_id limit 1) n
    where circuit.circuit_id = wanted.circuit_id
    limit 1
  ) as set_on
  cross join lateral (select (circuit_policy_in_force(set_on.own, set_on.defaults)).rate) as policy
  cross join lateral (
    select count(*) as steps from lease
    where lease.circuit_id = wanted.circuit_id
      -- no cast leads from xid8 to xid; the low 32 bits are what a row keeps
      and lease.xmin::text::bigint = pg_current_xact_id()::text::bigint & 4294967295
  ) as n
  where policy.rate is not null and n.steps > 0
)
update circuit c
set rate_at = greatest(c.rate_at, coalesce($1, clock_timestamp()))
  + make_interval(secs => (select seconds from started where started.circuit_id = c.circuit_id))
where c.circuit_id = any (array(select circuit_id from started))
