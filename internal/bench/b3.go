package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// b3Scenario is fan-out and fan-in, wide and narrow, on one server and on several whose reports cross.
var b3Scenario = scenario{
	name:  "B3",
	about: "one step, very many beside each other, and one after all of them; and many smaller of the sort at once, on one server and on four",
	estimate: func(s *sizes) time.Duration {
		steps := s.fanRounds * (s.wideFan + s.fans*s.narrowFan)
		return s.floorEstimate(s.floorWindow) + 2*time.Duration(steps)*80*time.Microsecond + 4*time.Second
	},
	run: runB3,
}

// wideFanBar is how long the wide fan may take.
const wideFanBar = time.Second

// mostInFlight is the most that a worker may take at once.
const mostInFlight = 10_000

func runB3(ctx context.Context, w *world) error {
	w.phase(w.floorEstimate(w.floorWindow), "B3: the floor")
	floor, err := w.runFloor(ctx, w.floorWindow)
	if err != nil {
		return err
	}
	// A task has 10,000 steps at most, the first and the last among them.
	w.doc.Set("B3.wide.width", float64(w.wideFan))
	w.doc.Set("B3.narrow.width", float64(w.narrowFan))
	w.doc.Set("B3.narrow.fans", float64(w.fans))
	w.doc.Set("B3.floor.steps_per_s", floor.StepsPerSec)
	for _, servers := range []int{1, w.fanServers} {
		for len(w.servers) < servers {
			if _, err := w.addServer(ctx); err != nil {
				return err
			}
		}
		for _, shape := range []struct {
			name        string
			width, fans int
			bar         time.Duration // 0: none
		}{
			{"wide", w.wideFan, 1, wideFanBar},
			{"narrow", w.narrowFan, w.fans, 0},
		} {
			key := "B3." + shape.name
			if servers > 1 {
				key += strconv.Itoa(servers)
			}
			w.phase(time.Duration(w.fanRounds*shape.width*shape.fans)*80*time.Microsecond,
				"B3: %d × 1 → %d → 1, %d servers", shape.fans, shape.width, servers)
			f, err := w.runFans(ctx, strings.ToLower(strings.ReplaceAll(key, ".", "-")), shape.width, shape.fans)
			if err != nil {
				return err
			}
			f.record(w.doc, key, floor.StepsPerSec, shape.bar)
		}
	}
	// The database counts a session's deadlocks when the session gets to it, or ends.
	if err := w.stopServers(); err != nil {
		return err
	}
	n, err := w.deadlocks(ctx)
	if err != nil {
		return err
	}
	w.doc.judge(row{name: "B3.deadlocks", unit: "deadlocks", ours: float64(n), floor: 0, bar: "0", met: n == 0, beside: "the bar"})
	return nil
}

// Names of the steps of a fan that are not of its middle.
const (
	fanRoot = "root"
	fanJoin = "join"
)

// fanTemplate is one no-op step, so many beside each other after it, and one after all of them.
func fanTemplate(name, handler string, width int) *pb.Template {
	template := &pb.Template{Name: name, Steps: []*pb.StepDefinition{{Name: fanRoot, Handler: &handler}}}
	join := &pb.StepDefinition{Name: fanJoin, Handler: &handler}
	for i := range width {
		step := &pb.StepDefinition{Name: stepName(i), Handler: &handler, DependsOn: []string{fanRoot}}
		template.Steps = append(template.Steps, step)
		join.DependsOn = append(join.DependsOn, step.GetName())
	}
	template.Steps = append(template.Steps, join)
	return template
}

// fansResult is what rounds of fans showed.
type fansResult struct {
	steps     int       // a round
	elapsed   []float64 // ms, from the intended submit to the answer to the last report
	submitted []float64 // ms, to the submits' answers
	cost      cost
}

func (f *fansResult) record(d *Document, key string, floorRate float64, bar time.Duration) {
	ours, floor := median(f.elapsed), float64(f.steps)/floorRate*1e3
	d.Set(key+".elapsed_ms", ours)
	d.Set(key+".elapsed_max_ms", slices.Max(f.elapsed))
	d.Set(key+".submit_ms", median(f.submitted))
	d.Set(key+".steps_per_s", float64(f.steps)/ours*1e3)
	d.Set(key+".floor_ms", floor)
	f.cost.record(d, key)
	// That each join came once is checked on arrival.
	r := row{name: key, unit: "ms", ours: ours, floor: floor, ratio: ours / floor, beside: "computed"}
	if bar > 0 {
		r.bar, r.met = fmt.Sprintf("< %s", bar), ours < float64(bar.Milliseconds())
	}
	d.judge(r)
}

// fans are tasks that fan out and in, under way.
type fans struct {
	name  string
	width int

	mu    sync.Mutex
	runs  map[string]*fanRun
	ended int // steps recorded
}

// fanRun is one of them.
type fanRun struct {
	root, join int // times they came
	middle     map[string]bool
}

// arrive checks that each step comes once, and in its turn.
func (f *fans) arrive(step *pb.ReadyStep) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	run := f.runs[step.GetTaskName()]
	switch {
	case run == nil:
		return fmt.Errorf("a step of task %q came, which is none of ours", step.GetTaskName())
	case step.GetStepName() == fanRoot:
		run.root++
	case step.GetStepName() == fanJoin:
		run.join++
		if len(run.middle) != f.width {
			return fmt.Errorf("the join of %s came after %d of %d steps", step.GetTaskName(), len(run.middle), f.width)
		}
	case run.middle[step.GetStepName()]:
		return fmt.Errorf("%s of %s came twice", step.GetStepName(), step.GetTaskName())
	default:
		run.middle[step.GetStepName()] = true
	}
	if run.root != 1 || run.join > 1 {
		return fmt.Errorf("%s: its first step came %d times and its join %d times", step.GetTaskName(), run.root, run.join)
	}
	return nil
}

// runFans runs rounds of so many fans at once, with a worker on each server; the tasks are submitted to the servers in turn.
func (w *world) runFans(ctx context.Context, name string, width, count int) (result *fansResult, err error) {
	var conns []*grpc.ClientConn
	defer func() { hangUp(conns) }()
	for _, server := range w.servers {
		some, err := dial(server.address, 1)
		if err != nil {
			return nil, err
		}
		conns = append(conns, some...)
	}
	ref, err := register(ctx, conns[0], fanTemplate(name, name, width))
	if err != nil {
		return nil, err
	}
	f := &fans{name: name, width: width, runs: map[string]*fanRun{}}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	x, err := w.openCrew(ctx, crewConfig{
		handler: name, inFlight: int32(min(width*count, mostInFlight)), at: w.servers, crossing: len(w.servers) > 1, //nolint:gosec // far below 2³¹
		answer: func(step *pb.ReadyStep) *pb.ReportStepResultRequest {
			if err := f.arrive(step); err != nil {
				fail(err)
			}
			return succeed(step)
		},
		recorded: func(reports []*pb.ReportStepResultRequest) {
			f.mu.Lock()
			f.ended += len(reports)
			f.mu.Unlock()
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := x.close(); closeErr != nil && err == nil {
			err = closeErr
		}
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause
		}
	}()
	result = &fansResult{steps: count * (width + 2)}
	// The first round plans the statements and does not count.
	for i := range w.fanRounds + 1 {
		if i == 1 {
			result.elapsed, result.submitted = nil, nil
		}
		spent, err := w.costOf(ctx, result.steps, func() error { return f.round(x, conns, ref, i, count, result) })
		if err != nil {
			return nil, err
		}
		result.cost = spent
	}
	return result, nil
}

// round submits the fans of one round and waits for their ends.
func (f *fans) round(x *crew, conns []*grpc.ClientConn, ref *pb.TemplateRef, no, count int, result *fansResult) error {
	f.mu.Lock()
	want := f.ended + result.steps
	for i := range count {
		f.runs[f.task(no, i)] = &fanRun{middle: make(map[string]bool, f.width)}
	}
	f.mu.Unlock()
	begun := time.Now()
	var submits errgroup.Group
	for i := range count {
		client := pb.NewTaskServiceClient(conns[i%len(conns)])
		submits.Go(func() error {
			if _, err := client.SubmitTask(x.ctx, &pb.SubmitTaskRequest{Task: submission(ref, f.task(no, i))}); err != nil {
				return fmt.Errorf("submitting a fan: %w", err)
			}
			x.w.tasks.Add(1)
			x.w.steps.Add(int64(f.width + 2))
			return nil
		})
	}
	if err := submits.Wait(); err != nil {
		return err
	}
	result.submitted = append(result.submitted, milliseconds(time.Since(begun)))
	err := x.await(func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.ended >= want
	})
	result.elapsed = append(result.elapsed, milliseconds(time.Since(begun)))
	return err
}

func (f *fans) task(round, i int) string { return fmt.Sprintf("%s.%d.%d", f.name, round, i) }

// deadlocks that the database has ended.
func (w *world) deadlocks(ctx context.Context) (n int64, err error) {
	err = w.conn.QueryRow(ctx, "select deadlocks from pg_stat_database where datname = current_database()").Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting deadlocks: %w", err)
	}
	return n, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
