-- The id of a lane and of its circuit (0: it has none), both made on their first use.
-- $1 namespace_id int, $2 handler text, $3 circuit text, $4 priority int
with circuit_made as (
  insert into circuit (namespace_id, name) select $1, $3 where $3 <> ''
  on conflict (namespace_id, name) do nothing
  returning circuit_id
),
its_circuit as (
  select circuit_id from circuit_made
  union all
  select circuit_id from circuit where namespace_id = $1 and name = $3
  limit 1
),
made as (
  insert into lane (namespace_id, handler, circuit, priority, circuit_id)
  select $1, $2, $3, $4, (select circuit_id from its_circuit)
  -- somebody made the circuit after this snapshot: nothing comes back, and the statement is run again
  where $3 = '' or exists (select from its_circuit)
  on conflict (namespace_id, handler, circuit, priority) do nothing
  returning lane_id, circuit_id
)
select lane_id, coalesce(circuit_id, 0) from made
union all
select lane_id, coalesce(circuit_id, 0) from lane where namespace_id = $1 and handler = $2 and circuit = $3 and priority = $4
limit 1
