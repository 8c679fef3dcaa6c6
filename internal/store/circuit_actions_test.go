package store_test

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// drawClaim asks for up to three steps of some lanes, as a server does that may be wrong about their circuits.
func (x *circuitMachine) drawClaim() *store.Claim {
	d := x.draws()
	c := &store.Claim{Sessions: x.workers}
	for _, l := range some(d, "lanes", len(x.m.lanes), x.m.lanes) {
		want := store.LaneWant{LaneID: l.id, CircuitID: x.ids32[l.circuit]}
		for range pick(d, "slots", 1, 2, 5) {
			want.Slots = append(want.Slots, pick(d, "session", x.workers...).SessionID)
		}
		c.Lanes = append(c.Lanes, want)
		if l.circuit == nil {
			continue
		}
		if at := slices.IndexFunc(c.Circuits, func(w store.CircuitWant) bool { return w.CircuitID == want.CircuitID }); at < 0 {
			exclusive := !x.m.plain(x.m.seen(l.circuit)) != d.chance("wrong", 10)
			c.Circuits = append(c.Circuits, store.CircuitWant{CircuitID: want.CircuitID, Exclusive: exclusive, LaneID: l.id})
		} else if d.chance("taker", 50) {
			c.Circuits[at].LaneID = l.id
		}
	}
	return c
}

func (x *circuitMachine) claim(*rapid.T) {
	claim := x.drawClaim()
	grants, _, err := x.server().Claim(context.Background(), x.ns, claim)
	x.ok(err)
	for _, w := range claim.Circuits {
		if w.Exclusive {
			x.m.advance(x.circuit(w.CircuitID))
		}
	}
	x.granted(claim, grants)
}

func (x *circuitMachine) circuit(id int32) *modelCircuit {
	for c, n := range x.ids32 {
		if n == id && c != nil {
			return c
		}
	}
	x.t.Fatalf("no circuit %d", id)
	return nil
}

// granted checks that each lane gave what it had to, and grants it in the model.
func (x *circuitMachine) granted(claim *store.Claim, grants []store.Grant) {
	x.t.Helper()
	d := x.draws()
	rooms := map[int32]int{} // of lanes, before anything is granted
	for _, want := range claim.Lanes {
		rooms[want.LaneID] = len(want.Slots)
		if want.CircuitID == 0 {
			continue
		}
		w := claim.Circuits[slices.IndexFunc(claim.Circuits, func(w store.CircuitWant) bool { return w.CircuitID == want.CircuitID })]
		if room, bounded := x.m.room(x.circuit(w.CircuitID)); bounded {
			if !w.Exclusive {
				x.reached["a claim took a bounded circuit for plain"]++
			}
			if !w.Exclusive || w.LaneID != want.LaneID {
				room = 0
			}
			rooms[want.LaneID] = min(rooms[want.LaneID], room)
		}
	}
	starts := map[*modelCircuit]int{}
	for _, want := range claim.Lanes {
		lane := x.m.lanes[slices.IndexFunc(x.m.lanes, func(l *behindLane) bool { return l.id == want.LaneID })]
		queue := x.m.runnable(lane)
		expected, last := 0, time.Time{}
		for k := range min(rooms[want.LaneID], len(queue)) {
			if x.m.isBarred(lane.circuit, x.names[want.Slots[k]]) {
				x.reached["a barred worker was passed by"]++
			} else {
				expected++
			}
			last = queue[k].runnableAt
		}
		var got []store.Grant
		for _, g := range grants {
			if g.LaneID == want.LaneID {
				got = append(got, g)
			}
		}
		what := "S13: grants of lane %d"
		if lane.circuit != nil {
			what = "S11: grants of lane %d, whose circuit is " + x.m.seen(lane.circuit).state
		}
		same(d, fmt.Sprintf(what, want.LaneID), len(got), expected)
		for _, g := range got {
			s := x.steps[g.Step.Token.Step]
			if !slices.Contains(queue, s) || s.runnableAt.After(last) {
				x.t.Fatalf("S13: step %v was granted out of turn", g.Step.Token.Step)
			}
			if x.m.isBarred(lane.circuit, x.names[g.SessionID]) {
				x.t.Fatalf("S11: worker %s is barred from circuit %s and was granted a step of it", x.names[g.SessionID], lane.circuit.name)
			}
			same(d, "S11: a probe", g.Step.Probe, lane.circuit != nil && lane.circuit.state == "half_open")
			same(d, "the token's circuit", g.Step.Token.CircuitID, x.ids32[lane.circuit])
			starts[lane.circuit]++
			delete(x.late, s)
			x.tokens[x.m.grant(s, x.names[g.SessionID], 5*sec)] = g.Step.Token
		}
	}
	for _, w := range claim.Circuits {
		if w.Exclusive {
			x.m.pace(x.circuit(w.CircuitID), starts[x.circuit(w.CircuitID)])
		}
	}
}

// report reports outcomes of running steps, and may claim in the same transaction.
func (x *circuitMachine) report(claim *store.Claim) {
	d := x.draws()
	leases := some(d, "leases", 5, x.running())
	kind := pick(d, "mood", "success", "success", "mixed", "retryable_failure")
	var (
		reports []task.Report
		batch   []said
		touched = map[*modelCircuit]bool{}
	)
	for i, l := range leases {
		s := said{lease: l, outcome: kind, blame: "dependency"}
		if kind == "mixed" {
			s.outcome = pick(d, "outcome", "success", "retryable_failure", "permanent_failure")
		}
		x.serial++
		r := task.Report{Token: x.tokens[l], Outcome: task.Outcome(s.outcome), Digest: machineDigest(fmt.Sprint(x.serial))}
		if s.outcome == "success" {
			r.Results = "{}"
		}
		if s.outcome == "retryable_failure" {
			s.blame = pick(d, "blame", "dependency", "dependency", "dependency", "worker", "step")
			s.reach = d.chance("reach", 8)
			r.Blame, r.ReachCircuit = task.Blame(s.blame), s.reach
			switch pick(d, "hint", "", "", "after", "at") {
			case "after":
				s.after = ptr(pick(d, "after", 0, 700*ms, 3*sec, 100*sec))
				r.Hint = task.Hint{Source: task.FromRetryAfter, After: s.after}
			case "at":
				s.at = ptr(x.now.Add(pick(d, "at", -sec, 0, 2*sec)))
				r.Hint = task.Hint{Source: task.FromRetryAt, At: s.at}
			}
		}
		s.duration = pick[time.Duration](d, "duration", 0, 0, 100*ms, 5*sec)
		r.RunDuration = s.duration
		if i == 0 && d.chance("besides", 15) {
			o := besides{circuit: pick(d, "circuit", x.m.circuits...), observed: pick(d, "calls", 1, 4)}
			o.failed, o.slow = rapid.IntRange(0, o.observed).Draw(x.t, "failed"), rapid.IntRange(0, o.observed).Draw(x.t, "slow")
			s.besides = append(s.besides, o)
			r.Observations = []task.CircuitObservation{{
				Circuit: o.circuit.name, CircuitID: x.ids32[o.circuit], Calls: o.observed, Failed: o.failed, Slow: o.slow,
			}}
			touched[o.circuit] = true
		}
		if c := l.step.lane.circuit; c != nil {
			touched[c] = true
		}
		reports, batch = append(reports, r), append(batch, s)
	}
	f, err := x.server().Turn(context.Background(), x.ns, nil, reports, claim)
	x.ok(err)
	if claim != nil {
		for _, w := range claim.Circuits {
			if w.Exclusive {
				touched[x.circuit(w.CircuitID)] = true
			}
		}
	}
	for _, c := range x.m.circuits {
		if touched[c] {
			x.m.advance(c)
			before := c.generation
			x.m.charge(c, batch)
			same(d, "the flush says that the circuit changed", slices.Contains(f.Change.Circuits, x.ids32[c]), c.generation != before)
		}
	}
	for i, s := range batch {
		if f.Answers[i].Reported == nil {
			x.t.Fatalf("S4: a running step's report is answered %+v", f.Answers[i])
		}
		x.conclude(s)
	}
	if claim != nil {
		x.granted(claim, f.Grants)
	}
}

// conclude ends a lease in the model by a result.
func (x *circuitMachine) conclude(s said) {
	step := s.lease.step
	step.lease = nil
	if s.outcome != "retryable_failure" && s.outcome != "timed_out" {
		step.gone = true
		return
	}
	delay := sec
	switch {
	case s.after != nil:
		delay = *s.after
	case s.at != nil:
		delay = max(s.at.Sub(x.now), 0)
	}
	step.runnableAt = x.now.Add(delay)
}

func (x *circuitMachine) confirm(*rapid.T) {
	var beats []store.Beat
	for _, l := range some(x.draws(), "leases", 5, x.running()) {
		beats = append(beats, store.Beat{Token: x.tokens[l]})
		if l.confirmed.IsZero() {
			l.confirmed = x.now
		}
		l.until = x.now.Add(30 * sec)
	}
	_, err := x.server().Heartbeat(context.Background(), x.ns, beats)
	x.ok(err)
}

func (x *circuitMachine) giveBack(*rapid.T) {
	d := x.draws()
	outcome := pick(d, "outcome", "released", "undelivered")
	leases := some(d, "leases", 3, x.running())
	var held []store.HeldLease
	var delays []time.Duration
	for _, l := range leases {
		delay := time.Duration(0)
		if outcome == "released" {
			delay = pick[time.Duration](d, "delay", 0, 2*sec)
		}
		delays = append(delays, delay)
		held = append(held, x.held(l, delay))
	}
	_, change, err := x.server().GiveBack(context.Background(), x.ns, held, task.Outcome(outcome))
	x.ok(err)
	for _, l := range leases {
		if c := l.step.lane.circuit; c != nil {
			x.m.advance(c)
			if (outcome != "undelivered" || l.confirmed.IsZero()) && !slices.Contains(change.Circuits, x.ids32[c]) {
				x.t.Fatalf("S11: a slot of circuit %s was freed, and nobody is told", c.name)
			}
		}
	}
	for i, l := range leases {
		if outcome != "undelivered" || l.confirmed.IsZero() {
			x.m.comeBack(l, delays[i])
			x.late[l.step] = l
		}
	}
}

func (x *circuitMachine) held(l *circuitLease, delay time.Duration) store.HeldLease {
	token := x.tokens[l]
	return store.HeldLease{Step: token.Step, Nonce: token.Nonce, LaneID: l.step.lane.id, CircuitID: token.CircuitID, Delay: delay}
}

// lose lets a confirmed lease run out, mostly.
func (x *circuitMachine) lose(t *rapid.T) {
	l := pick(x.draws(), "lease", x.running()...)
	_, err := x.server().Heartbeat(context.Background(), x.ns, []store.Beat{{Token: x.tokens[l]}})
	x.ok(err)
	if l.confirmed.IsZero() {
		l.confirmed = x.now
	}
	l.until = x.now.Add(30 * sec)
	x.pass(30 * sec)
	x.expire(t)
}

func (x *circuitMachine) expire(*rapid.T) {
	found, err := x.server().ExpiredLeases(context.Background(), 1000)
	x.ok(err)
	_, _, err = x.server().Expire(context.Background(), x.ns, found)
	x.ok(err)
	touched := map[*modelCircuit]bool{}
	var batch []said
	for _, l := range x.running() {
		s := said{lease: l, blame: "dependency"}
		switch {
		case !l.confirmed.IsZero() && l.step.timeout > 0 && !x.now.Before(l.confirmed.Add(l.step.timeout)):
			s.outcome = "timed_out"
		case x.now.Before(l.until):
			continue
		case l.confirmed.IsZero():
			s.outcome = "undelivered"
		default:
			s.outcome = "lost_lease"
			if l.probe {
				x.reached["lost a probe"]++
			}
		}
		touched[l.step.lane.circuit] = true
		batch = append(batch, s)
	}
	same(x.draws(), "expired leases", len(found), len(batch))
	charged := slices.DeleteFunc(slices.Clone(batch), func(s said) bool { return s.outcome == "undelivered" })
	for _, c := range x.m.circuits {
		if touched[c] {
			x.m.advance(c)
			x.m.charge(c, charged)
		}
	}
	for _, s := range batch {
		if s.outcome == "timed_out" {
			x.conclude(s)
		} else {
			x.m.comeBack(s.lease, 0)
			x.late[s.lease.step] = s.lease
		}
	}
}

// reportLate reports under a token whose lease came back without a result. It is accepted, and no circuit is charged: the
// loss was.
func (x *circuitMachine) reportLate(t *rapid.T) {
	var steps []*behindStep
	for _, s := range x.m.steps {
		if x.late[s] != nil {
			steps = append(steps, s)
		}
	}
	if len(steps) == 0 {
		t.Skip("no report can come late")
	}
	s := pick(x.draws(), "step", steps...)
	x.serial++
	a, _, err := x.server().ReportLate(context.Background(), &task.Report{
		Token: x.tokens[x.late[s]], Outcome: task.Success, Results: "{}", Digest: machineDigest(fmt.Sprint(x.serial)),
	})
	x.ok(err)
	if a.Reported == nil {
		t.Fatalf("S4: a late report of a waiting step is answered %+v", a)
	}
	x.reached["late report"]++
	delete(x.late, s)
	s.gone = true
}

// cancel ends a task whose steps run, slots of circuits among them.
func (x *circuitMachine) cancel(*rapid.T) {
	id := x.tokens[pick(x.draws(), "lease", x.running()...)].Step.Task()
	_, _, err := x.server().CancelTask(context.Background(), id, operator)
	x.ok(err)
	for stepID, s := range x.steps {
		if stepID.Task() == id {
			s.gone, s.lease = true, nil
			delete(x.late, s)
		}
	}
}

func (x *circuitMachine) pass(d time.Duration) {
	x.now = x.now.Add(d)
	x.m.now = x.now
}

// jump moves the clock on: by a little, or to where a circuit turns by itself, or just before it.
func (x *circuitMachine) jump(*rapid.T) {
	d := x.draws()
	var next []time.Time
	at := func(t time.Time) {
		if t.After(x.now) && t.Before(x.now.Add(10*time.Minute)) {
			next = append(next, t)
		}
	}
	for _, c := range x.m.circuits {
		at(c.openUntil)
		if c.hold != nil {
			at(c.hold.from)
			at(c.hold.until)
		}
		at(c.paced)
	}
	switch {
	case d.chance("by", 50) || len(next) == 0:
		x.pass(pick(d, "duration", 100*ms, 700*ms, 3*sec, 11*sec, 70*sec))
	case d.chance("just before", 20):
		x.pass(pick(d, "to", next...).Sub(x.now) - time.Microsecond)
	default:
		x.pass(pick(d, "to", next...).Sub(x.now))
	}
}
