package store_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

var halfOpenPeriods = flag.Int("circuit.periods", 10_000, "how many half-open periods circuits go through at least; a tenth with -short")

const (
	probedCircuits = 100
	probingServers = 4
	stepsBehind    = 8
)

// TestProbesAreBoundedOverAllServers takes many circuits through half-open periods, again and again, while four servers
// claim, report, hand back and forget at once:
//
//   - S11: at no instant more than max_probes of a circuit run
//   - S11: no claim that begins after the report which opened a circuit was answered is granted a step of it
//   - no slot of a probe is ever leaked: however probes ended, as many as max_probes run when all servers have claimed
func TestProbesAreBoundedOverAllServers(t *testing.T) {
	p := newProbing(t)
	wanted := *halfOpenPeriods
	if testing.Short() {
		wanted /= 10
	}
	for p.periods < wanted && !t.Failed() {
		p.round()
	}
	t.Logf("reached half_open_periods=%d", p.periods)
	t.Logf("%d probes: %d handed back, %d failed, %d forgotten; %d looks at what ran", p.probes.Load(), p.returned.Load(), p.failed.Load(), p.forgotten.Load(), p.looks.Load())
	if p.returned.Load() == 0 || p.failed.Load() == 0 || p.forgotten.Load() == 0 || p.looks.Load() == 0 {
		t.Error("some of it never happened")
	}
}

// probed is one circuit and what the test knows of it.
type probed struct {
	id, lane  int32
	maxProbes int
	opened    atomic.Bool // the report that opened it was answered, in this round
}

type probing struct {
	*testing.T
	w                                          *world
	servers                                    []*store.Store
	now                                        atomic.Pointer[time.Time]
	circuits                                   []*probed
	byID                                       map[int32]*probed
	session                                    store.SessionFence
	periods                                    int
	serial                                     atomic.Int64
	probes, returned, failed, forgotten, looks atomic.Int64

	mu   sync.Mutex
	held map[task.Token]int32 // probes that run and their lanes
}

func newProbing(t *testing.T) *probing {
	w := newWorld(t)
	p := &probing{T: t, w: w, byID: map[int32]*probed{}, held: map[task.Token]int32{}, session: w.session}
	p.now.Store(&w.now)
	config, err := pgxpool.ParseConfig(w.db.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	for range probingServers {
		s, err := store.Open(context.WithoutCancel(t.Context()), config, 3)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		s.At = p.now.Load
		p.servers = append(p.servers, s)
	}
	_, err = w.s.SetCircuitDefaults(t.Context(), w.ns, operator, func(task.CircuitPolicy) (task.CircuitPolicy, error) {
		return task.CircuitPolicy{
			MinObservations: ptr(1), OpenDuration: ptr(sec), MaxOpenDuration: ptr(sec), MaxProbes: ptr(2), CloseAfterSuccesses: ptr(1000),
		}, nil
	})
	w.ok(err)
	for i := range probedCircuits {
		s := step()
		s.Circuit, s.RetryLimit, s.MaxLostLeases, s.Initial = fmt.Sprintf("c%03d", i), 1000, 1000, ptr(time.Duration(0))
		w.submit(slices.Repeat([]task.StepSpec{s}, stepsBehind)...)
		c := &probed{maxProbes: 2}
		c.lane, c.id, err = w.s.EnsureLane(t.Context(), store.Lane{NamespaceID: w.ns, Handler: "work", Circuit: s.Circuit, Priority: 1})
		w.ok(err)
		if i%3 != 0 {
			c.maxProbes = 1 + 2*(i%3-1) // 1 or 3
			w.ok(w.s.SetCircuitPolicy(t.Context(), c.id, operator, func(p task.CircuitPolicy) (task.CircuitPolicy, error) {
				p.MaxProbes = &c.maxProbes
				return p, nil
			}))
		}
		w.ok(w.s.HoldCircuit(t.Context(), c.id, task.CircuitHold{}))
		_, err = w.s.ReleaseCircuit(t.Context(), c.id, operator)
		w.ok(err)
		p.circuits, p.byID[c.id] = append(p.circuits, c), c
	}
	return p
}

// round begins with circuits that are half-open and ends when all are open; then time passes.
func (p *probing) round() {
	p.Helper()
	for _, c := range p.circuits {
		c.opened.Store(false)
	}
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		often := time.NewTicker(10 * time.Millisecond)
		defer often.Stop()
		for {
			p.look(false)
			select {
			case <-stop:
				return
			case <-often.C:
			}
		}
	})
	// What the last round left behind still runs, or expires meanwhile: both are slots.
	p.onAllServers(func(s *store.Store, draw *rand.Rand) {
		p.expire(s)
		p.claim(s, draw)
	})
	p.look(true)
	p.onAllServers(func(s *store.Store, draw *rand.Rand) {
		for range 3 {
			p.giveBack(s, draw)
			p.claim(s, draw)
		}
	})
	p.look(true)
	p.onAllServers(func(s *store.Store, draw *rand.Rand) {
		for p.fail(s) {
			p.claim(s, draw)
		}
		p.claim(s, draw)
	})
	close(stop)
	watch.Wait()
	p.allOpen()
	p.periods += len(p.circuits)
	// Whoever has not reported yet never will: a probe of an earlier period decides nothing.
	p.forgotten.Add(int64(len(p.held)))
	clear(p.held)
	now := p.now.Load().Add(6 * sec) // longer than circuits stay open, and leases last
	p.now.Store(&now)
}

func (p *probing) onAllServers(do func(*store.Store, *rand.Rand)) {
	var all sync.WaitGroup
	for _, s := range p.servers {
		draw := rand.New(rand.NewPCG(uint64(p.serial.Add(1)), 17))
		all.Go(func() { do(s, draw) })
	}
	all.Wait()
}

// claim asks for more of each circuit than it has room for, some circuits at a time.
func (p *probing) claim(s *store.Store, draw *rand.Rand) {
	from := draw.IntN(len(p.circuits))
	order := slices.Concat(p.circuits[from:], p.circuits[:from])
	for some := range slices.Chunk(order, 40) {
		claim := &store.Claim{Sessions: []store.SessionFence{p.session}}
		shut := map[int32]bool{}
		for _, c := range some {
			shut[c.lane] = c.opened.Load()
			claim.Lanes = append(claim.Lanes, store.LaneWant{LaneID: c.lane, CircuitID: c.id, Slots: slices.Repeat([]int32{p.session.SessionID}, 4)})
			claim.Circuits = append(claim.Circuits, store.CircuitWant{CircuitID: c.id, Exclusive: true, LaneID: c.lane})
		}
		grants, _, err := s.Claim(context.Background(), p.w.ns, claim)
		if err != nil {
			p.Error(err)
			return
		}
		p.mu.Lock()
		for _, g := range grants {
			if shut[g.LaneID] {
				p.Errorf("S11: circuit %d was open when a claim began, and the claim was granted step %d", g.Step.Token.CircuitID, g.Step.Token.Step)
			}
			if !g.Step.Probe || g.Step.Token.CircuitID == 0 {
				p.Errorf("S11: step %d was granted while its circuit was half-open, and is no probe", g.Step.Token.Step)
				continue
			}
			p.held[g.Step.Token] = g.LaneID
			p.probes.Add(1)
		}
		p.mu.Unlock()
	}
}

// take removes up to n probes, of those that want says, from the ones that run.
func (p *probing) take(n int, want func(task.Token) bool) (tokens []task.Token, lanes []int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for token, lane := range p.held {
		if len(tokens) == n {
			break
		}
		if want(token) {
			tokens, lanes = append(tokens, token), append(lanes, lane)
			delete(p.held, token)
		}
	}
	return tokens, lanes
}

func (p *probing) giveBack(s *store.Store, draw *rand.Rand) {
	tokens, lanes := p.take(20, func(task.Token) bool { return true })
	held := make([]store.HeldLease, len(tokens))
	for i, token := range tokens {
		held[i] = store.HeldLease{Step: token.Step, Nonce: token.Nonce, LaneID: lanes[i], CircuitID: token.CircuitID}
	}
	outcome := []task.Outcome{task.Released, task.Undelivered}[draw.IntN(2)]
	ended, _, err := s.GiveBack(context.Background(), p.w.ns, held, outcome)
	if err != nil {
		p.Error(err)
	}
	p.returned.Add(int64(len(ended)))
}

// fail reports a failed probe of circuits that nobody has opened in this round.
func (p *probing) fail(s *store.Store) bool {
	seen := map[int32]bool{}
	tokens, _ := p.take(25, func(t task.Token) bool {
		if seen[t.CircuitID] || p.byID[t.CircuitID].opened.Load() {
			return false
		}
		seen[t.CircuitID] = true
		return true
	})
	if len(tokens) == 0 {
		return false
	}
	none := time.Duration(0)
	reports := make([]task.Report, len(tokens))
	for i, token := range tokens {
		reports[i] = task.Report{
			Token: token, Outcome: task.RetryableFailure, Digest: machineDigest(fmt.Sprint(p.serial.Add(1))),
			Hint: task.Hint{Source: task.FromRetryAfter, After: &none},
		}
	}
	f, err := s.Turn(context.Background(), p.w.ns, nil, reports, nil)
	if err != nil {
		p.Error(err)
		return false
	}
	for i, a := range f.Answers {
		if a.Reported == nil {
			p.Errorf("a probe's report is answered %+v", a)
		}
		p.byID[tokens[i].CircuitID].opened.Store(true)
	}
	p.failed.Add(int64(len(tokens)))
	return true
}

// expire ends the leases of those who were not heard of.
func (p *probing) expire(s *store.Store) {
	found, err := s.ExpiredLeases(context.Background(), 1000)
	if err != nil {
		p.Error(err)
		return
	}
	ended, _, err := s.Expire(context.Background(), p.w.ns, found)
	if err != nil {
		p.Error(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range ended {
		delete(p.held, e.Token)
	}
}

// look counts the probes that run, by the database. full demands that every slot is taken: all servers have claimed.
func (p *probing) look(full bool) {
	rows, err := p.servers[0].Cold.Query(context.Background(), "select circuit_id, count(*)::int from lease where probe group by circuit_id")
	if err != nil {
		p.Error(err)
		return
	}
	var (
		id, n   int32
		running = map[int32]int{}
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &n}, func() error { running[id] = int(n); return nil }); err != nil {
		p.Error(err)
		return
	}
	p.looks.Add(1)
	for _, c := range p.circuits {
		switch n := running[c.id]; {
		case n > c.maxProbes:
			p.Errorf("S11: %d probes of circuit %d run at once, max_probes is %d", n, c.id, c.maxProbes)
		case full && n < c.maxProbes:
			p.Errorf("S11: a probe's slot was leaked: all servers have claimed, and %d of %d probes of circuit %d run", n, c.maxProbes, c.id)
		}
	}
}

// allOpen demands that each circuit opened once in the round, and that what runs was granted while it let steps go.
func (p *probing) allOpen() {
	p.Helper()
	bad := value[int](p.w, "select count(*) from circuit where state <> 'open'")
	equal(p.w, "S11: circuits that are not open after a probe failed", bad, 0)
	bad = value[int](p.w, `select count(*) from lease join circuit_event e on e.circuit_id = lease.circuit_id and e.generation = lease.circuit_generation
		where e.to_state <> 'half_open' or not lease.probe`)
	equal(p.w, "S11: leases that were granted in another state than half-open", bad, 0)
	periods := value[int](p.w, "select min(n) from (select count(*)::int as n from circuit_event where to_state = 'half_open' and from_state <> 'half_open' group by circuit_id) of_each")
	equal(p.w, "half-open periods of each circuit", periods, p.periods/len(p.circuits)+1)
}
