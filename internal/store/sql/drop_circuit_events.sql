-- Forgets events of circuits that are older than an instant, but never a circuit's last one: what it says still holds.
-- $1 before timestamptz, $2 limit int
delete from circuit_event
where event_id in (
  select event.event_id from circuit_event event
  where event.recorded_at < $1
    and exists (select from circuit_event later where later.circuit_id = event.circuit_id and later.generation > event.generation)
  order by event.event_id
  limit $2)
