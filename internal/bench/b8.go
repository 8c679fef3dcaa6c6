package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// b8Scenario is several servers on one database: workers are on the first, tasks are submitted to the last.
var b8Scenario = scenario{
	name:  "B8",
	about: "one, two and four servers, workers on one and submits on another: how long a wake takes across, and the throughput",
	estimate: func(s *sizes) time.Duration {
		each := time.Duration(s.wakes)*s.wakeEvery + s.warmup + s.replicaWindow + 2*time.Second
		return s.floorEstimate(s.replicaWindow) + hopProbes*time.Millisecond + time.Duration(len(s.replicas))*each
	},
	run: runB8,
}

const (
	// wakeBar is how long a wake may take across servers, of a hundred the 99th, in milliseconds.
	wakeBar = 5.0
	// warmBeats run before those that count.
	warmBeats = 20
	hopProbes = 300
	// wakeChannel is where servers tell each other what they changed, and sideSession what the sessions call themselves
	// that tell it.
	wakeChannel = "tasker_wake"
	sideSession = "tasker notify"
)

func runB8(ctx context.Context, w *world) error {
	w.phase(hopProbes*time.Millisecond, "B8: a notification, bare")
	hop, err := w.notifyHop(ctx)
	if err != nil {
		return err
	}
	hop.recordIn(w.doc, "B8.floor.hop")
	w.phase(w.floorEstimate(w.replicaWindow), "B8: the floor")
	floor, err := w.runFloor(ctx, w.replicaWindow)
	if err != nil {
		return err
	}
	w.doc.Set("B8.floor.steps_per_s", floor.StepsPerSec)
	ears, err := w.listen(ctx)
	if err != nil {
		return err
	}
	defer ears.close(context.WithoutCancel(ctx))
	for _, servers := range w.replicas {
		for len(w.servers) < servers {
			if _, err := w.addServer(ctx); err != nil {
				return err
			}
		}
		key := "B8." + strconv.Itoa(servers)
		w.phase(time.Duration(w.wakes)*w.wakeEvery, "B8: wakes, %d servers", servers)
		p, err := w.openPulse(ctx, "", "bench-wake-"+strconv.Itoa(servers), 1, w.last(), w.server())
		if err != nil {
			return err
		}
		_, err = p.run(w.wakeEvery, warmBeats)
		var times *pulseTimes
		if err == nil {
			times, err = p.run(w.wakeEvery, w.wakes)
		}
		if closeErr := p.close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
		times.recordIn(w.doc, key)
		times.wake.recordIn(w.doc, key+".wake")
		w.phase(w.warmup+w.replicaWindow, "B8: throughput, %d servers", servers)
		short := *w
		short.window = w.replicaWindow
		l, err := short.runLives(ctx, batched)
		if err != nil {
			return err
		}
		w.doc.Set(key+".throughput_per_s", l.perSecond)
		l.cost.record(w.doc, key)
		// Alone, a server wakes itself: there is no wake across, and its figure is what the others' stand beside.
		r := row{name: key, unit: "ms p99 wake", ours: times.wake.ms(99), floor: hop.ms(99), beside: "LISTEN/NOTIFY, bare"}
		r.ratio = r.ours / r.floor
		if servers > 1 {
			r.bar, r.met = fmt.Sprintf("< %g ms", wakeBar), r.ours < wakeBar
		}
		w.doc.judge(r)
		w.doc.judge(row{
			name: key + ".throughput", unit: "steps/s", ours: l.perSecond, floor: floor.StepsPerSec, ratio: l.perSecond / floor.StepsPerSec,
		})
	}
	return w.judgeNotifications(ctx, ears)
}

// notifyHop times bare notifications from one session to another.
func (w *world) notifyHop(ctx context.Context) (*latencies, error) {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "listen bench_hop"); err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	times := newLatencies()
	for range hopProbes {
		heard := make(chan error, 1)
		begun := time.Now()
		go func() {
			_, err := conn.WaitForNotification(ctx)
			heard <- err
		}()
		if _, err := w.conn.Exec(ctx, "select pg_notify('bench_hop', '')"); err != nil {
			return nil, fmt.Errorf("notifying: %w", err)
		}
		if err := <-heard; err != nil {
			return nil, fmt.Errorf("waiting for a notification: %w", err)
		}
		times.record(time.Since(begun))
	}
	return times, nil
}

// ears hear what the servers tell each other, and who says it.
type ears struct {
	conn  *pgx.Conn
	stop  context.CancelFunc
	ended chan struct{}
	err   error
	said  map[uint32]int // notifications by the process of the session that sent them
}

func (w *world) listen(ctx context.Context) (*ears, error) {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	if _, err := conn.Exec(ctx, "listen "+wakeChannel); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("listening: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	e := &ears{conn: conn, stop: stop, ended: make(chan struct{}), said: map[uint32]int{}}
	go func() {
		defer close(e.ended)
		for {
			n, err := conn.WaitForNotification(ctx)
			if err != nil {
				if ctx.Err() == nil {
					e.err = fmt.Errorf("listening: %w", err)
				}
				return
			}
			e.said[n.PID]++
		}
	}()
	return e, nil
}

func (e *ears) close(ctx context.Context) {
	e.stop()
	<-e.ended
	_ = e.conn.Close(ctx)
}

// judgeNotifications tells whether every notification came from a session that does nothing else. One that rode on a
// transaction that moves steps would come from another.
func (w *world) judgeNotifications(ctx context.Context, e *ears) error {
	e.stop()
	<-e.ended
	if e.err != nil {
		return e.err
	}
	rows, _ := w.conn.Query(ctx, "select pid from pg_stat_activity where datname = current_database() and application_name = $1", sideSession)
	side, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("listing the sessions that notify: %w", err)
	}
	all, riding := 0, 0
	for pid, n := range e.said {
		all += n
		if !slices.Contains(side, pid) {
			riding += n
		}
	}
	w.doc.Set("B8.notifications", float64(all))
	w.doc.judge(row{
		name: "B8.notify_in_data_tx", unit: "notifications", ours: float64(riding), floor: 0, ratio: float64(riding) / float64(max(all, 1)),
		beside: fmt.Sprintf("of %d", all), bar: "0", met: riding == 0 && all > 0,
	})
	return nil
}
