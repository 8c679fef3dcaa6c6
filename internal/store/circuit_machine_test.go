package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

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
	for what, within := range circuitsDue {
		if reached[what] == 0 && sequences >= within {
			t.Errorf("%d sequences never came to: %s", sequences, what)
		}
	}
}

// circuitsDue are things that the test must have come to, each with the number of sequences that make sure of it.
var circuitsDue = map[string]int{
	"failure_rate": 50, "reach": 150, "open_elapsed": 30, "probe_failed": 50, "probes_passed": 50, "hold": 30, "release": 30, "policy": 10,
	"kept by circuit": 20, "kept by limit": 50, "kept by paused": 20, "late report": 50, "hold_ended": 100, "workers_barred": 300,
	"lost a probe": 150, "wave_failed": 150, "recovered": 400, "wave_passed": 400, "slow_rate": 600,
	"a claim took a bounded circuit for plain": 50, "a barred worker was passed by": 300,
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
