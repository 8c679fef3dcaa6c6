package store_test

import (
	"context"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/task"
)

func (x *circuitMachine) drawRules() circuitRules {
	d := x.draws()
	maybe := func(what string) bool { return d.chance(what, 40) }
	r := circuitRules{}
	if d.chance("trips easily", 95) {
		r.minSeen = ptr(pick(d, "min_observations", 1, 1, 2, 3))
	}
	if d.chance("short", 80) {
		r.open = ptr(pick(d, "open_duration", sec, 4*sec))
	}
	if maybe("max_open") {
		r.maxOpen = ptr(pick(d, "max_open_duration", 4*sec, 10*sec))
	}
	if maybe("window") {
		r.window = ptr(pick(d, "window_duration", sec, 10*sec))
	}
	if maybe("slow") {
		r.slowCall, r.slowRate = ptr(pick(d, "slow_call_duration", sec, 3*sec)), ptr(pick(d, "slow_rate", 0.2, 0.3, 1))
	}
	if maybe("rate of failures") {
		r.failRate = ptr(pick(d, "failure_rate", 0.25, 0.9))
	}
	if maybe("quorum") {
		r.minWorkers = ptr(pick(d, "min_failing_workers", 2, 3))
	}
	if maybe("probes") {
		r.probes = ptr(pick(d, "max_probes", 1, 2, 3))
	}
	if d.chance("close", 70) {
		r.closeAfter = ptr(pick(d, "close_after", 1, 2))
	}
	if d.chance("wave", 70) {
		r.wave = ptr(pick(d, "recovery_wave", 1, 2))
	}
	if d.chance("bulkhead", 15) {
		r.inFlight = ptr(pick(d, "max_in_flight", 1, 3))
	}
	if d.chance("paced", 15) {
		r.rate = ptr(pick(d, "rate", 0.5, 2, 20))
	}
	return r
}

func (r circuitRules) policy() task.CircuitPolicy {
	return task.CircuitPolicy{
		Window: r.window, MinObservations: r.minSeen, FailureRateThreshold: r.failRate, SlowCallDuration: r.slowCall, SlowRateThreshold: r.slowRate,
		MinFailingWorkers: r.minWorkers, OpenDuration: r.open, MaxOpenDuration: r.maxOpen, MaxProbes: r.probes, CloseAfterSuccesses: r.closeAfter,
		RecoveryWave: r.wave, MaxInFlight: r.inFlight, Rate: r.rate,
	}
}

func (x *circuitMachine) rule(c *modelCircuit) {
	r := x.drawRules()
	err := x.server().SetCircuitPolicy(context.Background(), x.ids32[c], operator, func(task.CircuitPolicy) (task.CircuitPolicy, error) { return r.policy(), nil })
	x.ok(err)
	x.m.advance(c)
	c.rules = r
	x.m.ruled(c, operator.Actor)
}

func (x *circuitMachine) setDefaults(*rapid.T) {
	r := x.drawRules()
	_, err := x.server().SetCircuitDefaults(context.Background(), x.ns, operator, func(task.CircuitPolicy) (task.CircuitPolicy, error) { return r.policy(), nil })
	x.ok(err)
	for _, c := range x.m.circuits {
		x.m.advance(c)
	}
	x.m.defaults = r
	for _, c := range x.m.circuits {
		x.m.ruled(c, operator.Actor)
	}
}

func (x *circuitMachine) hold(*rapid.T) {
	d := x.draws()
	c := pick(d, "circuit", x.m.circuits...)
	h := modelHold{from: x.now, reason: "maintenance", actor: operator.Actor}
	th := task.CircuitHold{Reason: h.reason, Actor: h.actor}
	if d.chance("planned", 50) {
		h.from = x.now.Add(pick(d, "from", sec, 5*sec))
		th.From = h.from
	}
	if d.chance("ends", 60) {
		h.until = h.from.Add(pick(d, "for", sec, 7*sec))
		th.Until = &h.until
	}
	x.ok(x.server().HoldCircuit(context.Background(), x.ids32[c], th))
	x.m.advance(c)
	x.m.holdIt(c, h)
}

func (x *circuitMachine) releaseIt(*rapid.T) {
	c := pick(x.draws(), "circuit", x.m.circuits...)
	changed, err := x.server().ReleaseCircuit(context.Background(), x.ids32[c], operator)
	x.ok(err)
	x.m.advance(c)
	same(x.draws(), "released", changed, x.m.release(c, operator.Actor))
}
