-- The slots that leases take: what each says of its circuit, and the circuit of its lane.
select lease.task_id, lease.step_no, lease.dispatches as dispatch, coalesce(lease.circuit_id, 0) as circuit_id,
  coalesce(lane.circuit_id, 0) as lane_circuit, coalesce(lease.circuit_generation, 0) as generation, coalesce(lease.probe, false) as probe
from lease
join lane on lane.lane_id = lease.lane_id
where lease.circuit_id is not null or lane.circuit_id is not null
order by lease.task_id, lease.step_no
