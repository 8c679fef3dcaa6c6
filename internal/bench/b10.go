package bench

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// b10Scenario is payloads from very small to very large.
var b10Scenario = scenario{
	name:  "B10",
	about: "payloads of 0.1 to 512 KB, as a task's context and as a step's results: time and log bytes a KB, and that none is written twice",
	estimate: func(s *sizes) time.Duration {
		return time.Duration(len(s.payloads)*s.payloadBytes>>10) * 150 * time.Microsecond
	},
	run: runB10,
}

const (
	// payloadBar is how much more a KB of the largest payload may cost than one of linearFrom bytes, above which what a
	// step costs by itself no longer shows.
	payloadBar = 1.5
	linearFrom = 64 << 10

	payloadInFlight = 64
	// tellTime is how long the last sessions may take to end and tell what they did.
	tellTime = 10 * time.Second
	// payloadSubmit is the most bytes that one call submits.
	payloadSubmit = 2 << 20
	// A size takes at least so many tasks, and at most.
	leastPayloads, mostPayloads = 16, 5000
)

// payloadCost is what a KB of payload cost.
type payloadCost struct {
	size              int
	us, wal           float64
	floorUS, floorWAL float64
}

func runB10(ctx context.Context, w *world) error {
	var found []payloadCost
	for _, size := range w.payloads {
		n := min(max(w.payloadBytes/size, leastPayloads), mostPayloads)
		w.phase(time.Duration(w.payloadBytes>>10)*150*time.Microsecond, "B10: payloads of %d bytes", size)
		c, err := w.runPayloads(ctx, size, n)
		if err != nil {
			return fmt.Errorf("payloads of %d bytes: %w", size, err)
		}
		key := "B10." + strconv.Itoa(size)
		w.doc.Set(key+".steps", float64(n))
		w.doc.Set(key+".us_per_kb", c.us)
		w.doc.Set(key+".wal_per_byte", c.wal)
		w.doc.Set(key+".floor.us_per_kb", c.floorUS)
		w.doc.Set(key+".floor.wal_per_byte", c.floorWAL)
		w.doc.judge(row{name: key, unit: "µs/KB", ours: c.us, floor: c.floorUS, ratio: c.us / c.floorUS, beside: "bare inserts"})
		found = append(found, c)
	}
	w.judgeLinear(found)
	return w.judgeRewrites(ctx)
}

// judgeLinear compares the largest payload with the first one that is large.
func (w *world) judgeLinear(found []payloadCost) {
	from, to := found[0], found[len(found)-1]
	for _, c := range found {
		if c.size >= linearFrom {
			from = c
			break
		}
	}
	for _, r := range []row{
		{name: "B10.time", unit: "µs/KB", ours: to.us, floor: from.us},
		{name: "B10.wal", unit: "bytes/byte", ours: to.wal, floor: from.wal},
	} {
		r.ratio, r.beside, r.bar = r.ours/r.floor, fmt.Sprintf("%d KB", from.size>>10), fmt.Sprintf("≤ %g", payloadBar)
		r.met = r.ratio <= payloadBar
		w.doc.judge(r)
	}
}

// judgeRewrites tells whether a row that holds a payload was ever updated. The servers are stopped first: a session tells
// its last figures when it ends.
func (w *world) judgeRewrites(ctx context.Context) error {
	if err := w.stopServers(); err != nil {
		return err
	}
	var inserted, updated int64
	// Three rows a step, when all of them have been told of: before that, no update need have been, either. A session outlives
	// its server a little.
	whole := 3 * w.steps.Load()
	for begun := time.Now(); inserted < whole && time.Since(begun) < tellTime; pause(ctx, 20*time.Millisecond) {
		err := w.conn.QueryRow(ctx, `
			select coalesce(sum(n_tup_ins), 0)::bigint, coalesce(sum(n_tup_upd), 0)::bigint
			from pg_stat_user_tables where relname ~ '^(task|step|step_end)_p[0-9]+$'`).Scan(&inserted, &updated)
		if err != nil {
			return fmt.Errorf("counting rewrites: %w", err)
		}
	}
	w.doc.Set("B10.inserted_rows", float64(inserted))
	w.doc.judge(row{
		name: "B10.rewritten", unit: "rows", ours: float64(updated), ratio: float64(updated) / float64(max(inserted, 1)),
		beside: fmt.Sprintf("of %d", inserted), bar: "0", met: updated == 0 && inserted >= whole,
	})
	return nil
}

// payload is a JSON object of that many bytes that no compression makes much shorter.
func payload(size int) string {
	const frame = len(`{"p":""}`)
	noise := make([]byte, size)
	_, _ = rand.Read(noise)
	return `{"p":"` + base64.RawURLEncoding.EncodeToString(noise)[:size-frame] + `"}`
}

// runPayloads runs n one-step tasks whose context and results are of that size.
func (w *world) runPayloads(ctx context.Context, size, n int) (c payloadCost, err error) {
	c.size = size
	l, err := w.openLot(ctx, "", "bench-payload-"+strconv.Itoa(size))
	if err != nil {
		return c, err
	}
	defer l.close()
	body := payload(size)
	results := &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: body}}
	x, err := w.openCrew(ctx, crewConfig{
		handler: l.handler, inFlight: payloadInFlight,
		answer: func(step *pb.ReadyStep) *pb.ReportStepResultRequest {
			return &pb.ReportStepResultRequest{LeaseToken: step.GetLeaseToken(), Outcome: results}
		},
		recorded: func(reports []*pb.ReportStepResultRequest) { l.recorded.Add(int64(len(reports))) },
	})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	var took time.Duration
	spent, err := w.costOf(ctx, n, func() error {
		begun := time.Now()
		if err := w.submitPayloads(x, l, body, n); err != nil {
			return err
		}
		err := x.await(func() bool { return l.recorded.Load() >= int64(n) })
		took = time.Since(begun)
		return err
	})
	if err != nil {
		return c, err
	}
	bytes := 2 * float64(size) // of a step: context and results
	c.us, c.wal = float64(took.Microseconds())/float64(n)/bytes*1024, spent.wal/bytes
	spent.record(w.doc, "B10."+strconv.Itoa(size))
	c.floorUS, c.floorWAL, err = w.insertBare(ctx, body, 2*n)
	return c, err
}

// submitPayloads submits n tasks with that context, as many a call as fit.
func (w *world) submitPayloads(x *crew, l *lot, body string, n int) error {
	var group errgroup.Group
	each := min(max(payloadSubmit/len(body), 1), submitBatch)
	share := (n + len(l.conns) - 1) / len(l.conns)
	for i, conn := range l.conns {
		client, left := pb.NewTaskServiceClient(conn), min(share, n-i*share)
		group.Go(func() error {
			for ; left > 0; left -= each {
				request := &pb.BatchSubmitTasksRequest{}
				for range min(each, left) {
					task := submission(l.ref, l.handler)
					task.Context = body
					request.Tasks = append(request.Tasks, task)
				}
				if _, err := client.BatchSubmitTasks(x.ctx, request); err != nil {
					return fmt.Errorf("submitting payloads: %w", err)
				}
				w.tasks.Add(int64(len(request.GetTasks())))
				w.steps.Add(int64(len(request.GetTasks())))
			}
			return nil
		})
	}
	return group.Wait()
}

// insertBare writes the payload n times into a table that has nothing else, as many a commit as a batch would carry: what
// storing it costs in any case.
func (w *world) insertBare(ctx context.Context, body string, n int) (usPerKB, walPerByte float64, err error) {
	conn := w.databases.conn
	const table = "create table bench_payload (n bigint generated always as identity primary key, body text not null)"
	if _, err := conn.Exec(ctx, table); err != nil {
		return 0, 0, fmt.Errorf("making a table: %w", err)
	}
	position := func() (at int64, err error) {
		err = conn.QueryRow(ctx, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").Scan(&at)
		return at, err
	}
	from, err := position()
	if err != nil {
		return 0, 0, fmt.Errorf("reading the log's position: %w", err)
	}
	each := min(max(payloadSubmit/len(body), 1), submitBatch)
	begun := time.Now()
	for left := n; left > 0; left -= each {
		bodies := make([]string, min(each, left))
		for i := range bodies {
			bodies[i] = body
		}
		if _, err := conn.Exec(ctx, "insert into bench_payload (body) select unnest($1::text[])", bodies); err != nil {
			return 0, 0, fmt.Errorf("inserting bare payloads: %w", err)
		}
	}
	took := time.Since(begun)
	to, err := position()
	if err == nil {
		_, err = conn.Exec(ctx, "drop table bench_payload")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("ending the bare inserts: %w", err)
	}
	bytes := float64(n) * float64(len(body))
	return float64(took.Microseconds()) / bytes * 1024, float64(to-from) / bytes, nil
}
