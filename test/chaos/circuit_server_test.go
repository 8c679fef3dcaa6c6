//go:build linux

package chaos_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
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
	World                string   // a folder: the dependency is down while there is a file "down" in it
	Handlers             []string // what the workers take
	Workers              []string // their ids, which they keep in all lives of the process
	Sick                 string   // the worker that fails whatever it does
}

// The handlers of the circuits run. Each has a circuit of its own name.
const (
	flapping = "flapping" // the dependency comes and goes
	sickened = "sickened" // one worker fails where the others do not
	poisoned = "poisoned" // half the steps fail, and say that it is their own fault
	venomous = "venomous" // half the steps fail, and say that it is the dependency's
)

var circuitHandlers = []string{flapping, sickened, poisoned, venomous}

const poison = `{"poison":true}`

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

// hand is a worker.
type hand struct {
	e         *engine.Engine
	id, world string
	handlers  []string
	isSick    bool
	journal   *history.Journal

	mu   sync.Mutex
	held map[task.Token]bool // confirmed and running
}

const handsPerWorker = 6

// work opens a stream and runs what it brings, until ctx ends; and again, when the stream breaks.
func (h *hand) work(ctx context.Context) {
	var runs sync.WaitGroup
	defer runs.Wait()
	runs.Go(func() {
		for sleep(ctx, 300*time.Millisecond) {
			h.beat(ctx, nil)
		}
	})
	for sleep(ctx, 50*time.Millisecond) {
		st, err := h.e.Open(ctx, engine.Registration{Session: store.Session{
			WorkerID: h.id, InstanceID: "only", MaxInFlight: handsPerWorker, Handlers: h.handlers,
		}, Beats: true, DeliveryTimeout: time.Second, HeartbeatInterval: time.Second})
		if err != nil {
			continue // the database does not answer just now
		}
		for {
			f, err := st.Next(ctx)
			if err != nil {
				break
			}
			if f.Step != nil {
				runs.Go(func() { h.run(ctx, f.Step) })
			}
		}
		st.Close() //nolint:contextcheck // what was not delivered goes back, whether ctx has ended or not
	}
}

// beat confirms a step, or all that run.
func (h *hand) beat(ctx context.Context, step *task.ReadyStep) {
	h.mu.Lock()
	var beats []store.Beat
	if step != nil {
		h.held[step.Token] = true
		beats = []store.Beat{{Token: step.Token}}
	} else {
		for token := range h.held {
			beats = append(beats, store.Beat{Token: token})
		}
	}
	h.mu.Unlock()
	if len(beats) > 0 {
		_, _ = h.e.Heartbeat(ctx, beats) // A lease that is lost is found out by the report.
	}
}

// run does what its step's handler does. It writes down what it is given and what it says.
func (h *hand) run(ctx context.Context, step *task.ReadyStep) {
	h.write(history.Entry{Kind: history.FrameReceived, Probe: &step.Probe}, step)
	h.beat(ctx, step)
	defer func() {
		h.mu.Lock()
		delete(h.held, step.Token)
		h.mu.Unlock()
	}()
	took := time.Duration(5+step.StepNo%30) * time.Millisecond
	if step.StepNo%50 == 0 {
		took = 700 * time.Millisecond // in somebody's hands when they are killed
	}
	if !sleep(ctx, took) {
		return
	}
	none := time.Duration(0)
	r := task.Report{Token: step.Token, Outcome: task.Success, Results: "{}"}
	fail := func(blame task.Blame) {
		r.Outcome, r.Results, r.Blame, r.Failure = task.RetryableFailure, "", blame, task.Failure{ErrorCode: "BROKEN"}
	}
	_, err := os.Stat(filepath.Join(h.world, "down"))
	switch isPoison := step.HandlerConfig == poison; {
	case step.Handler == flapping && err == nil:
		fail(task.BlameDependency)
		r.Skip, r.Hint = true, task.Hint{Source: task.FromRetryAfter, After: &none}
		// Where a whole circuit should wait the dependency says so, now and then.
		if r.ReachCircuit = step.StepNo%11 == 0; r.ReachCircuit {
			r.Hint.After = ptr(time.Second)
		}
	case step.Handler == sickened && h.isSick:
		fail(task.BlameDependency)
		r.Skip, r.Hint = true, task.Hint{Source: task.FromRetryAfter, After: &none}
	case step.Handler == poisoned && isPoison:
		fail(task.BlameStep)
	case step.Handler == venomous && isPoison:
		fail(task.BlameDependency)
	}
	r.Digest = sha256.Sum256(fmt.Append(nil, r.Outcome, step.Token.Nonce))
	h.write(history.Entry{Kind: history.ReportSent, Outcome: string(r.Outcome)}, step)
	for {
		a := h.e.Report(ctx, []task.Report{r})[0]
		answer := history.Entry{Kind: history.ReportAnswered, Outcome: string(r.Outcome)}
		var refusal *task.Error
		switch {
		case a.Err == nil:
			answer.AlreadyRecorded = a.Reported.AlreadyRecorded
		case errors.As(a.Err, &refusal) && (refusal.Reason == task.LeaseLost || refusal.Reason == task.ResultConflict):
			answer.Reason = string(refusal.Reason)
		default: // the outcome of the call is not known
			if !sleep(ctx, 50*time.Millisecond) {
				return
			}
			continue
		}
		h.write(answer, step)
		return
	}
}

// write keeps an entry. What a worker that cannot write did then would be done unseen.
func (h *hand) write(e history.Entry, step *task.ReadyStep) {
	e.StepID, e.Dispatch = int64(step.Token.Step), step.Dispatch
	e.Token = history.TokenDigest(fmt.Sprintf("%x", step.Token.Nonce))
	if err := h.journal.Write(e); err != nil {
		fmt.Fprintln(os.Stderr, "panic:", err)
		os.Exit(3)
	}
}
