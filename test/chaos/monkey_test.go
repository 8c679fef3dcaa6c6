//go:build linux

package chaos_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/pgtest"
)

// monkey does harm at random moments. What it broke it repairs after a while.
type monkey struct {
	fleet      *fleet
	db         *pgtest.DB
	postmaster int
	draw       *rand.Rand
	repairs    sync.WaitGroup
	crashing   sync.Mutex // held while Postgres recovers

	mu    sync.Mutex
	done  map[string]int // acts by name
	wrong []error
}

// act is one way to do harm. It says whether it could be done: a process that is being repaired is left alone.
type act struct {
	name string
	deal int // how often it stands in a deck
	do   func(*monkey, context.Context) bool
}

var acts = []act{
	{"kills_server", 9, (*monkey).killServer},
	{"kills_worker", 10, (*monkey).killWorker},
	{"kills_connections", 10, (*monkey).killConnections},
	{"kills_postgres", 4, (*monkey).killPostgres},
	{"freezes_server", 2, (*monkey).freezeServer},
	{"freezes_worker", 3, (*monkey).freezeWorker},
	{"stops_server", 2, (*monkey).stopServer},
	{"stops_worker", 2, (*monkey).stopWorker},
}

func newMonkey(f *fleet, db *pgtest.DB, dataDir string, seed uint64) (*monkey, error) {
	body, err := os.ReadFile(filepath.Join(dataDir, "pgdata", "postmaster.pid"))
	if err != nil {
		return nil, fmt.Errorf("finding the postmaster: %w", err)
	}
	pid, _, _ := bytes.Cut(body, []byte("\n"))
	m := &monkey{fleet: f, db: db, draw: rand.New(rand.NewPCG(seed, 1<<33)), done: map[string]int{}}
	if m.postmaster, err = strconv.Atoi(string(pid)); err != nil {
		return nil, fmt.Errorf("finding the postmaster: %w", err)
	}
	return m, nil
}

// rage deals acts until ctx ends, and at least one of each kind; it returns when all is repaired.
func (m *monkey) rage(ctx context.Context) error {
	always := context.WithoutCancel(ctx)
	for deck := m.shuffle(1); len(deck) > 0; deck = deck[1:] {
		sleep(always, time.Duration(100+m.draw.IntN(900))*time.Millisecond)
		for tries := 0; !deck[0].do(m, always) && tries < 100; tries++ {
			sleep(always, 50*time.Millisecond)
		}
		if len(deck) == 1 && ctx.Err() == nil {
			deck = append(deck, m.shuffle(math.MaxInt)...)
		}
		if ctx.Err() != nil && len(m.done) == len(acts) {
			break
		}
	}
	m.repairs.Wait()
	return errors.Join(m.wrong...)
}

// shuffle makes a deck: each act as often as it is dealt, but at most so often.
func (m *monkey) shuffle(most int) (deck []act) {
	for _, a := range acts {
		for range min(a.deal, most) {
			deck = append(deck, a)
		}
	}
	m.draw.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
	return deck
}

// did counts an act.
func (m *monkey) did(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done[name]++
	return true
}

// repair does what mends an act, while others go on. It holds the slot meanwhile.
func (m *monkey) repair(s *slot, f func() error) {
	m.repairs.Go(func() {
		defer s.mu.Unlock()
		if err := f(); err != nil {
			m.mu.Lock()
			m.wrong = append(m.wrong, err)
			m.mu.Unlock()
		}
	})
}

// seize draws a slot and locks it; nil when it is being repaired, or its process is gone already.
func (m *monkey) seize(slots []*slot) *slot {
	s := slots[m.draw.IntN(len(slots))]
	if !s.mu.TryLock() {
		return nil
	}
	return s
}

func (m *monkey) killServer(context.Context) bool {
	s := m.seize(m.fleet.servers[:])
	if s == nil {
		return false
	}
	away := time.Duration(m.draw.IntN(1500)) * time.Millisecond
	m.repair(s, func() error {
		s.process.Load().kill()
		time.Sleep(away) // how long the server is away
		return m.fleet.startServer(s)
	})
	return m.did("kills_server")
}

func (m *monkey) killWorker(context.Context) bool {
	s := m.seize(m.fleet.workers[:])
	if s == nil {
		return false
	}
	m.repair(s, func() error {
		s.process.Load().kill()
		return m.fleet.startWorker(s)
	})
	return m.did("kills_worker")
}

func (m *monkey) stopServer(context.Context) bool {
	s := m.seize(m.fleet.servers[:])
	if s == nil {
		return false
	}
	m.repair(s, func() error { return errors.Join(s.process.Load().stop(stopServerPatience), m.fleet.startServer(s)) })
	return m.did("stops_server")
}

func (m *monkey) stopWorker(context.Context) bool {
	s := m.seize(m.fleet.workers[:])
	if s == nil {
		return false
	}
	m.repair(s, func() error { return errors.Join(s.process.Load().stop(stopWorkerPatience), m.fleet.startWorker(s)) })
	return m.did("stops_worker")
}

// freezeServer makes a server stand still for longer than its statements, or its sessions, may wait.
func (m *monkey) freezeServer(context.Context) bool {
	return m.freeze("freezes_server", m.fleet.servers[:], 4000)
}

// freezeWorker makes a worker stand still, mostly for longer than its leases last: what it reports then comes late.
func (m *monkey) freezeWorker(context.Context) bool {
	return m.freeze("freezes_worker", m.fleet.workers[:], 8000)
}

func (m *monkey) freeze(name string, slots []*slot, most int) bool {
	s := m.seize(slots)
	if s == nil {
		return false
	}
	still := time.Duration(500+m.draw.IntN(most)) * time.Millisecond
	m.repair(s, func() error {
		p := s.process.Load()
		p.signal(syscall.SIGSTOP)
		time.Sleep(still) // how long the process stands still
		p.signal(syscall.SIGCONT)
		return nil
	})
	return m.did(name)
}

// backends are the processes of Postgres that serve the servers, in no order.
func (m *monkey) backends(ctx context.Context) ([]int, error) {
	rows, err := m.db.Pool.Query(ctx, `
		select pid from pg_stat_activity
		where datname = current_database() and backend_type = 'client backend' and application_name like 'tasker%'`)
	if err != nil {
		return nil, err
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	m.draw.Shuffle(len(pids), func(i, j int) { pids[i], pids[j] = pids[j], pids[i] })
	return pids, err
}

// killConnections has the database end some connections, whatever is going on in them.
func (m *monkey) killConnections(ctx context.Context) bool {
	pids, err := m.backends(ctx)
	if err != nil || len(pids) == 0 {
		return false
	}
	_, err = m.db.Pool.Exec(ctx, "select pg_terminate_backend(pid) from unnest($1::int[]) as backend (pid)", pids[:min(len(pids), 1+m.draw.IntN(8))])
	return err == nil && m.did("kills_connections")
}

// killPostgres is kill -9 of one backend, at which Postgres ends all others and recovers from its log. Of what was
// acknowledged nothing may be gone.
func (m *monkey) killPostgres(ctx context.Context) bool {
	if !m.crashing.TryLock() {
		return false
	}
	pids, err := m.backends(ctx)
	if err != nil || len(pids) == 0 || parentOf(pids[0]) != m.postmaster || syscall.Kill(pids[0], syscall.SIGKILL) != nil {
		m.crashing.Unlock()
		return false
	}
	m.repairs.Go(func() {
		defer m.crashing.Unlock()
		err := errors.New("never asked")
		for deadline := time.Now().Add(startPatience); err != nil && time.Now().Before(deadline); {
			sleep(ctx, 200*time.Millisecond)
			err = m.db.Pool.Ping(ctx)
		}
		if err != nil {
			m.mu.Lock()
			m.wrong = append(m.wrong, fmt.Errorf("postgres does not come back: %w", err))
			m.mu.Unlock()
		}
	})
	return m.did("kills_postgres")
}

// parentOf is a process's parent, 0 if there is none: a number may be another process's by now.
func parentOf(pid int) int {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	fields := bytes.Fields(body[bytes.LastIndexByte(body, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(string(fields[1])) // 0 is nobody's
	return parent
}
