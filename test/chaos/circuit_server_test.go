//go:build linux

package chaos_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// circuitServerEnv makes the test binary be a server with workers of its own, and holds its settings.
const circuitServerEnv = "TASKER_TEST_CHAOS_CIRCUIT_SERVER"

// circuitServerSettings say what such a process is.
type circuitServerSettings struct {
	DatabaseURL, Journal string
	World                string   // a folder of signs that say how the dependency is
	Handlers             []string // what the workers take
	Workers              []string // their ids, which they keep in all lives of the process
	Sick                 string   // the worker that fails whatever it does
}

// The handlers of the circuits run. Each has a circuit of its own name.
const (
	flapping = "flapping" // the dependency comes and goes
	sluggish = "sluggish" // it is slow for a while
	sickened = "sickened" // one worker fails where the others do not
	blamed   = "blamed"   // that worker fails, and says that it is its own fault
	poisoned = "poisoned" // half the steps fail, and say that it is their own fault
	venomous = "venomous" // half the steps fail, and say that it is the dependency's
	narrow   = "narrow"   // few may run at a time
	paced    = "paced"    // few may start in a second
	patient  = "patient"  // steps have little time, which stands still while the circuit is shut
)

// fickle is the handler of the run over half-open circuits, of which each stands behind many.
const fickle = "fickle" // the dependency fails nearly always

var circuitHandlers = []string{flapping, sluggish, sickened, blamed, poisoned, venomous, narrow, paced, patient}

// What steps are like, by their handler_config.
const (
	poison = `{"poison":true}`
	once   = `{"once":true}` // fails the first time, and waits for pause
)

// Signs that the test puts up: files in the folder that it shares with the servers.
const (
	down   = "down"
	slow   = "slow"
	healed = "healed"
)

const (
	slowCall = 100 * time.Millisecond // from which on a call of sluggish is slow
	pause    = 600 * time.Millisecond
)

// runCircuitServer is the whole life of a server process. It gives the exit status.
func runCircuitServer(settings string) int {
	if err := serveCircuits(settings); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		return 1
	}
	return 0
}

func serveCircuits(settings string) error {
	var s circuitServerSettings
	if err := json.Unmarshal([]byte(settings), &s); err != nil {
		return fmt.Errorf("reading the settings: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	e, closeStore, err := circuitEngine(ctx, s.DatabaseURL, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	defer closeStore()
	journal, err := history.OpenJournal(s.Journal)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	var workers sync.WaitGroup
	for _, id := range s.Workers {
		h := &hand{e: e, id: id, isSick: id == s.Sick, world: s.World, handlers: s.Handlers, journal: journal, held: map[task.Token]bool{}}
		workers.Go(func() { h.work(ctx) })
	}
	out := bufio.NewWriter(os.Stdout)
	_, _ = fmt.Fprintln(out, "serving")
	if err := out.Flush(); err != nil {
		return err
	}
	<-ctx.Done()
	workers.Wait()
	return errors.Join(<-ended, journal.Close())
}

// circuitEngine makes an engine on a database, as a server does.
func circuitEngine(ctx context.Context, url string, log *slog.Logger) (*engine.Engine, func(), error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the database's address: %w", err)
	}
	config.MaxConns = 3
	st, err := store.Open(context.WithoutCancel(ctx), config, 4)
	if err != nil {
		return nil, nil, err
	}
	c := engine.Config{Log: log, Listen: func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, config.ConnConfig) }}
	_, _ = rand.Read(c.ReplicaID[:]) // never fails
	return engine.New(st, c), st.Close, nil
}
