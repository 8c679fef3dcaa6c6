package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// b7Scenario is very many workers that have nothing to do.
var b7Scenario = scenario{
	name:  "B7",
	about: "very many idle streams, a hundred a connection and each with its own: memory a stream, statements a second, share of a core",
	estimate: func(s *sizes) time.Duration {
		return s.idleFloorWindow + 2*stageEstimate + 2*(s.idleEstimate(s.idleFloorWindow)+s.idleEstimate(s.idleWindow))
	},
	run: runB7,
}

// idleEstimate is how long it takes to open the streams and watch them for a while.
func (s *sizes) idleEstimate(window time.Duration) time.Duration {
	return time.Duration(s.idleStreams)*3*time.Millisecond + s.idleSettle + window
}

const (
	// Bars of B7: of one core, statements a second, KiB a stream.
	idleCoreBar      = 0.01
	idleStatementBar = 1.0
	sharedStreamBar  = 20.0
	ownStreamBar     = 48.0

	streamsAConnection = 100
	openingAtOnce      = 32
	// lookEvery is how often the server's sessions are looked at.
	lookEvery = 10 * time.Millisecond
)

func runB7(ctx context.Context, w *world) error {
	w.phase(w.idleFloorWindow, "B7: a server without streams")
	baseline, err := w.watchIdle(ctx, w.idleFloorWindow)
	if err != nil {
		return err
	}
	for i, v := range []struct {
		name      string
		each      int     // streams a connection
		memoryBar float64 // KiB a stream
	}{
		{"shared", streamsAConnection, sharedStreamBar},
		{"own", 1, ownStreamBar},
	} {
		if i > 0 {
			// Memory that a server has had it may keep: each is measured on a fresh one.
			if err := w.stopServers(); err != nil {
				return err
			}
			if _, err := w.addServer(ctx); err != nil {
				return err
			}
		}
		least, err := w.idleFloor(ctx, v.name, v.each)
		if err != nil {
			return err
		}
		found, err := w.runIdle(ctx, w.server(), v.name, v.each, func(ctx context.Context) (rest, error) { return w.watchIdle(ctx, w.idleWindow) })
		if err != nil {
			return err
		}
		key := "B7." + v.name
		w.doc.Set(key+".streams", float64(w.idleStreams))
		if found.before >= 0 {
			w.doc.Set(key+".rss_before_kib", found.before)
			w.doc.Set(key+".rss_kib", found.after)
			w.doc.Set(key+".memory_kib", found.memory(w.idleStreams))
			w.doc.Set(key+".core", found.core)
			w.doc.Set(key+".floor.memory_kib", least.memory(w.idleStreams))
			w.doc.Set(key+".floor.core", least.core)
		}
		w.doc.Set(key+".seconds", found.seconds)
		if w.meter.SeesPostgres() {
			// Beside a server without streams, whose sessions are looked at as often: the looks are what Postgres does most.
			w.doc.Set(key+".postgres_core", found.postgres-baseline.postgres)
		}
		perStream := found.memory(w.idleStreams)
		for _, r := range []row{
			{name: key + ".memory", unit: "KiB a stream", ours: perStream, floor: least.memory(w.idleStreams), bar: fmt.Sprintf("≤ %g KiB", v.memoryBar), met: perStream <= v.memoryBar},
			{name: key + ".statements", unit: "a second", ours: found.statements, floor: baseline.statements, bar: fmt.Sprintf("< %g", idleStatementBar), met: found.statements < idleStatementBar, beside: "no stream"},
			{name: key + ".core", unit: "of a core", ours: found.core, floor: least.core, bar: fmt.Sprintf("< %g", idleCoreBar), met: found.core < idleCoreBar},
		} {
			if found.before < 0 && r.unit != "a second" {
				continue // the system does not tell of other processes
			}
			r.ratio = r.ours / r.floor
			w.doc.judge(r)
		}
	}
	// Nothing ran so far: what is verified must be something.
	l, err := w.openLot(ctx, "", "bench-awake")
	if err != nil {
		return err
	}
	defer l.close()
	_, err = l.run(ctx, submitBatch)
	return err
}

// idle is what idle streams cost.
type idle struct {
	rest
	before, after float64 // resident memory of the server, KiB
	seconds       float64
}

// rest is what goes on while nothing does.
type rest struct {
	statements     float64 // of the server, a second
	core, postgres float64 // shares of a core that the server used, and Postgres
}

// memory is what a stream takes, in KiB.
func (i *idle) memory(streams int) float64 { return (i.after - i.before) / float64(streams) }

// idleFloor is what the streams cost a server that opens them and sends idle frames as often as ours, and does nothing else.
func (w *world) idleFloor(ctx context.Context, name string, each int) (found *idle, err error) {
	empty, err := w.spawn(ctx, nil, "bench", "echo", "--idle") // that of the run has answered calls: what they took it may keep
	if err != nil {
		return nil, fmt.Errorf("starting an empty server: %w", err)
	}
	defer func() { err = errors.Join(err, empty.stop()) }()
	return w.runIdle(ctx, empty, "floor-"+name, each, func(ctx context.Context) (rest, error) {
		before, begun := processTime(empty.pid()), time.Now()
		pause(ctx, w.idleFloorWindow)
		return rest{core: (processTime(empty.pid()) - before).Seconds() / time.Since(begun).Seconds()}, context.Cause(ctx)
	})
}

// runIdle opens the streams, so many a connection, and watches what goes on while nothing does.
func (w *world) runIdle(
	ctx context.Context, server *process, name string, each int, watch func(context.Context) (rest, error),
) (found *idle, err error) {
	found = &idle{before: residentKiB(server.pid())}
	w.phase(time.Duration(w.idleStreams)*3*time.Millisecond, "B7: opening %d streams (%s)", w.idleStreams, name)
	streams, err := w.openIdle(ctx, server.address, name, each)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := streams.close(); err == nil {
			err = closeErr
		}
	}()
	w.phase(w.idleSettle+w.idleWindow, "B7: %d idle streams (%s)", w.idleStreams, name)
	begun := time.Now()
	if found.rest, err = streams.watch(w, watch); err != nil {
		return nil, err
	}
	found.seconds = (time.Since(begun) - w.idleSettle).Seconds()
	found.after = residentKiB(server.pid())
	return found, nil
}

// watchIdle counts what the server asks of the database for a while, and the processor time that it and Postgres use.
//
// The database's own count of transactions would not do: sessions add theirs up to ten seconds late, and autovacuum's are
// among them. So its sessions are looked at, often: each statement, or pipeline of some, shows by the time at which it began.
// Two of one session between two looks count as one, which hardly happens where there is next to nothing to do.
func (w *world) watchIdle(ctx context.Context, window time.Duration) (rest, error) {
	begun := map[uint32]time.Time{}
	var asked int
	look := func() error {
		var (
			pid uint32
			at  time.Time
		)
		rows, _ := w.conn.Query(ctx, `
			select pid, query_start from pg_stat_activity
			where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid() and query_start is not null`)
		_, err := pgx.ForEachRow(rows, []any{&pid, &at}, func() error {
			if !begun[pid].Equal(at) {
				asked++
			}
			begun[pid] = at
			return nil
		})
		if err != nil {
			return fmt.Errorf("looking at the server's sessions: %w", err)
		}
		return nil
	}
	first, err := w.read(ctx)
	if err != nil {
		return rest{}, err
	}
	if err := look(); err != nil {
		return rest{}, err
	}
	asked = 0
	from := time.Now()
	for time.Since(from) < window {
		pause(ctx, lookEvery)
		if ctx.Err() != nil {
			return rest{}, context.Cause(ctx)
		}
		if err := look(); err != nil {
			return rest{}, err
		}
	}
	took := time.Since(from).Seconds()
	last, err := w.read(ctx)
	if err != nil {
		return rest{}, err
	}
	return rest{
		statements: float64(asked) / took,
		core:       (last.ServerCPU - first.ServerCPU).Seconds() / took,
		postgres:   (last.PostgresCPU - first.PostgresCPU).Seconds() / took,
	}, nil
}

// idleStreams are workers that nothing comes for.
type idleStreams struct {
	conns   []*grpc.ClientConn
	mu      sync.Mutex
	workers []*worker
	group   *errgroup.Group
	ctx     context.Context //nolint:containedctx // the streams' life: ends when one of them fails
}

// watch has what goes on watched after a while, as long as the streams live.
func (s *idleStreams) watch(w *world, watch func(context.Context) (rest, error)) (rest, error) {
	pause(s.ctx, w.idleSettle)
	return watch(s.ctx)
}

func (w *world) openIdle(ctx context.Context, address, name string, each int) (*idleStreams, error) {
	s := &idleStreams{}
	s.group, ctx = errgroup.WithContext(ctx)
	s.ctx = ctx
	var err error
	if s.conns, err = dial(address, (w.idleStreams+each-1)/each); err != nil {
		return nil, err
	}
	var opening errgroup.Group
	opening.SetLimit(openingAtOnce)
	for i := range w.idleStreams {
		opening.Go(func() error {
			x, err := openWorker(ctx, s.conns[i/each], "", "idle-"+name+"-"+strconv.Itoa(i), "bench-idle-"+name, 10)
			if err != nil {
				return err
			}
			s.mu.Lock()
			s.workers = append(s.workers, x)
			s.mu.Unlock()
			s.group.Go(func() error {
				var came error
				err := x.follow(func(step *pb.ReadyStep) { came = fmt.Errorf("step %s came to an idle worker", step.GetStepId()) })
				return errors.Join(err, came)
			})
			return nil
		})
	}
	if err := opening.Wait(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *idleStreams) close() error {
	for _, x := range s.workers {
		x.end()
	}
	err := s.group.Wait()
	hangUp(s.conns)
	return err
}

// residentKiB is how much memory a process has, -1 where the system does not tell.
func residentKiB(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err == nil {
		for line := range strings.SplitSeq(string(text), "\n") {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				if kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64); err == nil {
					return kib
				}
			}
		}
	}
	return -1
}
