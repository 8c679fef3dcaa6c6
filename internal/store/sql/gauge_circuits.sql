-- Every circuit as it stands, for metrics.
select namespace, circuit, state, in_flight, waiting_steps from circuit_health
