package store_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// TestCircuitsAreWhatTheModelSays drives several servers' stores with random sequences of all that can happen to shared
// circuits, and holds them against the model after each: states, windows, waves, who is barred, the record of it (S11), and
// that the steps which the readiness table calls ready are those that a claim is granted (S13).
func TestCircuitsAreWhatTheModelSays(t *testing.T) {
	rigs := make([]*circuitRig, 2)
	t.Run("machines", func(t *testing.T) {
		for n := range rigs {
			rigs[n] = &circuitRig{reached: map[string]int{}}
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				rigs[n].run(t)
			})
		}
	})
	if t.Failed() {
		return
	}
	sequences, reached := 0, map[string]int{}
	for _, r := range rigs {
		sequences += r.count
		for what, n := range r.reached {
			reached[what] += n
		}
	}
	t.Logf("reached %v", reached)
	t.Logf("reached circuit_sequences=%d", sequences)
	// A test that quietly does less proves less.
	for _, what := range []string{
		"failure_rate", "slow_rate", "reach", "open_elapsed", "probe_failed", "probes_passed", "wave_passed", "wave_failed", "recovered",
		"hold", "hold_ended", "release", "policy", "workers_barred", "a claim took a bounded circuit for plain", "a barred worker was passed by",
		"kept by circuit", "kept by limit", "kept by paused", "lost a probe", "late report",
	} {
		if reached[what] == 0 && sequences >= 100 {
			t.Errorf("%d sequences never came to: %s", sequences, what)
		}
	}
}

// circuitRig is a database that sequences run on, one after the other, each in a namespace of its own.
type circuitRig struct {
	servers []*store.Store
	now     time.Time
	ids     *store.TaskIDs
	count   int
	reached map[string]int
}

func (r *circuitRig) run(t *testing.T) {
	config, err := pgxpool.ParseConfig(pgtest.New(t).ConnString())
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["role"] = "tasker_runtime"
	r.now = epoch
	for range 3 {
		s, err := store.Open(context.Background(), config, 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		s.At = func() *time.Time { return &r.now }
		r.servers = append(r.servers, s)
	}
	r.ids = &store.TaskIDs{Store: r.servers[0]}
	rapid.Check(t, func(rt *rapid.T) {
		x := r.begin(rt)
		rt.Repeat(map[string]func(*rapid.T){"": x.check, "verb": x.verb})
		x.finish()
	})
	found, err := history.Check(context.Background(), r.servers[0].Cold, history.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found.Violations[:min(len(found.Violations), 20)] {
		t.Error(v)
	}
}

// circuitMachine is one sequence.
type circuitMachine struct {
	*circuitRig
	t         *rapid.T
	m         *circuitModel
	ns        int32
	ids32     map[*modelCircuit]int32
	steps     map[task.StepID]*behindStep
	tokens    map[*circuitLease]task.Token
	workers   []store.SessionFence
	names     map[int32]string // of workers, by session
	watcher   store.SessionFence
	late      map[*behindStep]*circuitLease // came back without a result, and was not granted since
	recorded  map[*modelCircuit]int         // events that were compared
	serial    int
	submitted []task.ID
}

func (r *circuitRig) begin(t *rapid.T) *circuitMachine {
	r.count++
	r.now = r.now.Add(time.Hour)
	x := &circuitMachine{
		circuitRig: r, t: t, m: &circuitModel{now: r.now}, ids32: map[*modelCircuit]int32{}, steps: map[task.StepID]*behindStep{},
		tokens: map[*circuitLease]task.Token{}, names: map[int32]string{}, late: map[*behindStep]*circuitLease{}, recorded: map[*modelCircuit]int{},
	}
	ctx := context.Background()
	var err error
	x.ns, err = x.server().EnsureNamespace(ctx, fmt.Sprintf("n%d", r.count))
	x.ok(err)
	for i, name := range []string{"c1", "c1", "c2", ""} {
		l := &behindLane{}
		if name != "" {
			if i == 0 || x.m.circuits[len(x.m.circuits)-1].name != name {
				x.m.circuits = append(x.m.circuits, &modelCircuit{name: name, state: "closed", generation: 1, entered: 1})
			}
			l.circuit = x.m.circuits[len(x.m.circuits)-1]
		}
		var circuitID int32
		l.id, circuitID, err = x.server().EnsureLane(ctx, store.Lane{NamespaceID: x.ns, Handler: "work", Circuit: name, Priority: i % 4})
		x.ok(err)
		x.ids32[l.circuit] = circuitID
		x.m.lanes = append(x.m.lanes, l)
	}
	for _, w := range []string{"w1", "w2", "w3", "watcher"} {
		id, epoch, _, err := x.server().OpenSession(ctx, x.ns, [16]byte{1}, store.Session{WorkerID: w, InstanceID: "1", MaxInFlight: 1000, Handlers: []string{"work"}})
		x.ok(err)
		x.workers = append(x.workers, store.SessionFence{SessionID: id, Epoch: epoch, DeliveryTimeout: 5 * sec, Beats: true})
		x.names[id] = w
	}
	x.workers, x.watcher = x.workers[:3], x.workers[3]
	for _, c := range x.m.circuits {
		x.rule(c)
	}
	x.submit(t)
	return x
}

// finish ends what runs or waits.
func (x *circuitMachine) finish() {
	for _, id := range x.submitted {
		_, _, err := x.server().CancelTask(context.Background(), id, operator)
		if refusal := (*task.Error)(nil); !errors.As(err, &refusal) {
			x.ok(err)
		}
	}
	x.now = x.now.Add(time.Hour)
}

func (x *circuitMachine) server() *store.Store {
	return pick(x.draws(), "server", x.servers...)
}

func (x *circuitMachine) ok(err error) {
	if err != nil {
		x.t.Helper()
		x.t.Fatal(err)
	}
}

// draws lends the helpers that draw.
func (x *circuitMachine) draws() *machine { return &machine{t: x.t} }

func (x *circuitMachine) verb(t *rapid.T) {
	x.t = t
	verbs := map[string]func(*rapid.T){}
	var names []string
	may := func(possible bool, weight int, name string, do func(*rapid.T)) {
		if possible {
			verbs[name] = do
			names = append(names, slices.Repeat([]string{name}, weight)...)
		}
	}
	runs := len(x.running()) > 0
	live := 0
	for _, s := range x.m.steps {
		if !s.gone {
			live++
		}
	}
	may(live < 24, 3, "submit", x.submit)
	may(true, 6, "claim", x.claim)
	may(true, 5, "jump", x.jump)
	shut := slices.ContainsFunc(x.m.circuits, func(c *modelCircuit) bool { return c.hold != nil && c.hold.until.IsZero() })
	may(!shut, 1, "hold", x.hold)
	may(true, 1, "release", x.releaseIt)
	may(shut, 6, "release a hold", x.releaseIt)
	may(x.draws().chance("rule", 30), 1, "policy", func(*rapid.T) { x.rule(pick(x.draws(), "circuit", x.m.circuits...)) })
	may(x.draws().chance("rule all", 15), 1, "defaults", x.setDefaults)
	may(runs, 10, "report", func(*rapid.T) { x.report(nil) })
	may(runs, 4, "flush", func(*rapid.T) { x.report(x.drawClaim()) })
	may(runs, 2, "confirm", x.confirm)
	may(runs, 2, "give back", x.giveBack)
	may(runs, 2, "lose", x.lose)
	may(runs, 2, "expire", x.expire)
	may(runs, 1, "cancel", x.cancel)
	may(len(x.late) > 0, 2, "late", x.reportLate)
	verbs[pick(x.draws(), "verb", names...)](t)
}

// running are the leases that stand, in the order of their steps.
func (x *circuitMachine) running() (out []*circuitLease) {
	for _, s := range x.m.steps {
		if s.lease != nil {
			out = append(out, s.lease)
		}
	}
	return out
}

func (x *circuitMachine) submit(t *rapid.T) {
	ctx := context.Background()
	ids, err := x.ids.Take(ctx, 1)
	x.ok(err)
	sub := &task.Submission{Name: "t", Context: "{}", Digest: []byte("d")}
	nt := store.NewTask{ID: ids[0], Submission: sub}
	none, d := 0.0, x.draws()
	for no := 1; no <= pick(d, "steps", 1, 4, 8); no++ {
		lane := rapid.IntRange(0, len(x.m.lanes)-1).Draw(t, "lane")
		s := &behindStep{id: int64(ids[0]) + int64(no), lane: x.m.lanes[lane], runnableAt: x.now, timeout: pick[time.Duration](d, "timeout", 0, 0, 2*sec)}
		spec := task.StepSpec{Name: fmt.Sprintf("s%d", no), Handler: "work", Priority: lane % 4, Policy: task.Policy{
			RetryLimit: 1000, Retryable: true, MaxLostLeases: 1000, Jitter: &none, Initial: ptr(sec), Multiplier: ptr(1.0), RunTimeout: unlessZero(s.timeout),
		}}
		if s.lane.circuit != nil {
			spec.Circuit = s.lane.circuit.name
		}
		sub.Steps, nt.Lanes = append(sub.Steps, spec), append(nt.Lanes, s.lane.id)
		x.m.steps = append(x.m.steps, s)
		x.steps[task.ID(ids[0]).Step(no)] = s
	}
	_, _, err = x.server().Submit(ctx, x.ns, []store.NewTask{nt}, true)
	x.ok(err)
	x.submitted = append(x.submitted, ids[0])
}

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
	kind := pick(d, "mood", "success", "mixed", "retryable_failure", "retryable_failure")
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
	f, err := x.server().Flush(context.Background(), x.ns, reports, claim)
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

func (x *circuitMachine) drawRules() circuitRules {
	d := x.draws()
	maybe := func(what string) bool { return d.chance(what, 40) }
	r := circuitRules{}
	if d.chance("trips easily", 80) {
		r.minSeen = ptr(pick(d, "min_observations", 1, 2, 4))
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
		r.slowCall, r.slowRate = ptr(pick(d, "slow_call_duration", sec, 3*sec)), ptr(pick(d, "slow_rate", 0.3, 1))
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

func (x *circuitMachine) check(t *rapid.T) {
	x.t = t
	x.checkCircuits()
	if x.draws().chance("look at readiness", 60) {
		x.checkReadiness()
	}
}

// shownCircuit is what can be seen of a circuit.
type shownCircuit struct {
	State, Cause                         string
	Generation                           int
	Since, OpenUntil, HeldFrom, HeldTo   time.Time
	OpenFor                              time.Duration
	Observed, Failed, Slow, Failing      int
	Probes, Wave, WaveDone, Out, Waiting int
	Barred                               string
}

func utc(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func (x *circuitMachine) checkCircuits() {
	d := x.draws()
	found, err := x.server().Circuits(context.Background(), x.ns, store.CircuitFilter{})
	x.ok(err)
	same(d, "circuits", len(found), len(x.m.circuits))
	for i, c := range x.m.circuits {
		f := found[i]
		got := shownCircuit{
			State: string(f.State), Cause: string(f.Cause), Generation: int(f.Generation), Since: f.Since.UTC(), OpenUntil: utc(f.OpenUntil), OpenFor: f.OpenFor,
			Observed: f.Observed, Failed: f.Failed, Slow: f.Slow, Failing: f.FailingWorkers, Probes: f.Probes, Wave: f.Wave, WaveDone: f.WaveDone,
			Out: f.InFlight, Waiting: f.Waiting,
		}
		if f.Hold != nil {
			got.HeldFrom, got.HeldTo = f.Hold.From.UTC(), utc(f.Hold.Until)
		}
		for _, b := range f.Barred {
			got.Barred += fmt.Sprintf("%s until %v ", b.WorkerID, b.Until.UTC())
		}
		now, p := x.m.seen(c), x.m.policy(c)
		sum := now.calls.sum(*p.window, x.now)
		want := shownCircuit{
			State: now.state, Cause: now.cause, Generation: now.generation, Since: now.since, OpenUntil: now.openUntil, OpenFor: now.openFor,
			Observed: sum.observed, Failed: sum.failed, Slow: sum.slow, Probes: now.passed, Wave: now.wave, WaveDone: now.waveDone,
			Out: len(x.m.leases(c)), Waiting: x.m.waiting(c),
		}
		if now.since.IsZero() {
			got.Since = time.Time{} // it stands as it was made, by the database's own clock
		}
		if now.hold != nil {
			want.HeldFrom, want.HeldTo = now.hold.from, now.hold.until
		}
		for _, w := range []string{"w1", "w2", "w3"} {
			witness := c.workers[w]
			if witness == nil {
				continue
			}
			if witness.calls.sum(*p.window, x.now).failed > 0 {
				want.Failing++
			}
			if witness.barred.After(x.now) {
				want.Barred += fmt.Sprintf("%s until %v ", w, witness.barred)
			}
		}
		if got != want {
			x.t.Fatalf("S11: circuit %s at %v is not what the model says:\n got %+v\nwant %+v", c.name, x.now, got, want)
		}
		x.checkEvents(c)
	}
}

// checkEvents compares what went on record since the last check.
func (x *circuitMachine) checkEvents(c *modelCircuit) {
	fresh := c.events[x.recorded[c]:]
	x.recorded[c] = len(c.events)
	found, err := x.server().CircuitEvents(context.Background(), x.ns, task.CircuitEventQuery{Circuit: c.name, Limit: len(fresh) + 1})
	x.ok(err)
	slices.Reverse(found)
	if len(found) > len(fresh) && len(c.events) > len(fresh) {
		found = found[1:] // compared before
	}
	var got []modelCircuitEvent
	for _, e := range found {
		g := modelCircuitEvent{
			At: e.At.UTC(), Generation: int(e.Generation), From: string(e.From), To: string(e.To), Cause: string(e.Cause), OpenUntil: utc(e.OpenUntil), Wave: e.Wave,
			Workers: strings.Join(e.Workers, ","), Actor: e.Actor, Observed: e.Observed, Failed: e.Failed, Slow: e.Slow,
		}
		if e.Hold != nil {
			g.HoldFrom, g.HoldUntil = e.Hold.From.UTC(), utc(e.Hold.Until)
		}
		got = append(got, g)
	}
	if !slices.Equal(got, fresh) {
		x.t.Fatalf("S11: the record of circuit %s is not what the model says:\n got %+v\nwant %+v", c.name, got, fresh)
	}
	for _, e := range fresh {
		x.reached[e.Cause]++
	}
}

type shownBehind struct {
	ID           int64
	Ready        bool
	WaitingFor   string
	WaitingUntil *time.Time
}

// checkReadiness compares the readiness table with the model, and with what claims are granted. Who became runnable at the
// same instant may go in any order: the model takes over which.
func (x *circuitMachine) checkReadiness() {
	ctx := context.Background()
	ids := []int64{} // of tasks that have not ended
	for id, step := range x.steps {
		if task := int64(id.Task()); !step.gone && !slices.Contains(ids, task) {
			ids = append(ids, task)
		}
	}
	s := x.server()
	rows, err := s.Cold.Query(ctx, `select workflow_step_id, ready_for_execution, coalesce(waiting_for, ''), waiting_until from step_readiness_at($1, null, $2) order by 1`, ids, x.now)
	x.ok(err)
	shown, err := pgx.CollectRows(rows, pgx.RowToStructByPos[shownBehind])
	x.ok(err)
	byID := map[int64]shownBehind{}
	for _, r := range shown {
		byID[r.ID] = r
	}
	var ready []int64
	for _, l := range x.m.lanes {
		queue, room := x.m.runnable(l), 1<<20
		word, until := "", time.Time{}
		if l.circuit != nil {
			if n, bounded := x.m.room(l.circuit); bounded {
				room = n
			}
			word, until = x.m.keeps(l.circuit)
		}
		slices.SortStableFunc(queue, func(a, b *behindStep) int {
			first := 0
			if a, b := byID[a.id].Ready, byID[b.id].Ready; a != b {
				if first = 1; a {
					first = -1
				}
			}
			return cmp.Or(a.runnableAt.Compare(b.runnableAt), first)
		})
		for k, step := range queue {
			got := byID[step.id]
			if got.Ready != (k < room) {
				x.t.Fatalf("S13: step %d, number %d of %d in its lane, is ready: %v; its circuit has room for %d", step.id, k+1, len(queue), got.Ready, room)
			}
			if got.Ready {
				ready = append(ready, step.id)
				continue
			}
			x.reached["kept by "+word]++
			if got.WaitingFor != word || !utc(got.WaitingUntil).Equal(until) {
				x.t.Fatalf("S11: step %d waits for %s until %v; the model says %s until %v", step.id, got.WaitingFor, got.WaitingUntil, word, until)
			}
		}
	}
	for _, r := range shown {
		if r.Ready && !slices.Contains(ready, r.ID) {
			x.t.Fatalf("S13: step %d is called ready and cannot run", r.ID)
		}
	}
	x.checkPreview(s, ready)
}

// checkPreview claims everything, once for each lane that may be the one that takes from its circuit, and undoes it.
func (x *circuitMachine) checkPreview(s *store.Store, ready []int64) {
	granted := map[int64]bool{}
	for turn := range 2 {
		c := &store.Claim{Sessions: []store.SessionFence{x.watcher}}
		for i, l := range x.m.lanes {
			c.Lanes = append(c.Lanes, store.LaneWant{LaneID: l.id, CircuitID: x.ids32[l.circuit], Slots: slices.Repeat([]int32{x.watcher.SessionID}, 60)})
			if l.circuit != nil && (i == 0 || x.m.lanes[i-1].circuit != l.circuit) {
				c.Circuits = append(c.Circuits, store.CircuitWant{CircuitID: x.ids32[l.circuit], Exclusive: true, LaneID: l.id})
			} else if l.circuit != nil && turn == 1 {
				c.Circuits[len(c.Circuits)-1].LaneID = l.id
			}
		}
		grants, err := s.Preview(context.Background(), x.ns, c, nil)
		x.ok(err)
		for _, g := range grants {
			granted[int64(g.Step.Token.Step)] = true
		}
	}
	// As often as a lane has steps of an instant: which of them go is not said.
	place := func(id int64) string {
		s := x.steps[task.StepID(id)]
		return fmt.Sprint(s.lane.id, " ", s.runnableAt)
	}
	count := map[string]int{}
	for id := range granted {
		count[place(id)]++
	}
	for _, id := range ready {
		count[place(id)]--
	}
	for where, n := range count {
		if n != 0 {
			x.t.Fatalf("S13: of lane and instant %s, claims are granted %d steps more than are called ready", where, n)
		}
	}
}
