package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// pulseInFlight is what a pulse's worker takes at once.
const pulseInFlight = 2000

// pulse is one-step tasks of one handler that are submitted by the clock. How long each waits for its start, counted from
// when it was to be submitted, is what somebody waits who submits a task.
type pulse struct {
	w         *world
	name      string
	namespace string
	size      int // tasks a beat; above 1 they are submitted by one call
	ref       *pb.TemplateRef
	tasks     pb.TaskServiceClient
	conns     []*grpc.ClientConn
	crew      *crew

	mu       sync.Mutex
	beats    []beat
	stored   int // tasks whose submit was answered
	recorded int // reports that were
	times    *pulseTimes
}

// beat is one instant of the timetable.
type beat struct {
	at       time.Time // when it was to be submitted
	answered time.Time // when the submit was; zero: not yet
	came     []time.Time
}

// pulseTimes is what a stretch of beats showed.
type pulseTimes struct {
	start  *latencies // from the intended submit to the step's coming
	submit *latencies // from the intended submit to its answer
	wake   *latencies // from the submit's answer to the step's coming; 0 when the step was there first
	// perSecond is how many steps came, from the first intended submit to the last coming.
	perSecond float64
	last      time.Time
}

func newPulseTimes() *pulseTimes {
	return &pulseTimes{start: newLatencies(), submit: newLatencies(), wake: newLatencies()}
}

func (p *pulseTimes) recordIn(d *Document, key string) {
	p.start.recordIn(d, key+".start")
	d.Set(key+".submit_p99_ms", p.submit.ms(99))
	d.Set(key+".steps_per_s", p.perSecond)
}

// openPulse stores the template and opens the worker, which another server than the one submitted to may dispatch to.
func (w *world) openPulse(ctx context.Context, namespace, name string, size int, submitTo, workAt *process) (_ *pulse, err error) {
	p := &pulse{w: w, name: name, namespace: namespace, size: size, times: newPulseTimes()}
	if p.conns, err = dial(submitTo.address, 2); err != nil {
		return nil, err
	}
	p.tasks = pb.NewTaskServiceClient(p.conns[0])
	template := chainTemplate(name, name, 1)
	template.Namespace = namespace
	if p.ref, err = register(ctx, p.conns[0], template); err == nil {
		p.crew, err = w.openCrew(ctx, crewConfig{
			namespace: namespace, handler: name, inFlight: pulseInFlight, at: []*process{workAt}, answer: p.arrive,
			recorded: func(reports []*pb.ReportStepResultRequest) {
				p.mu.Lock()
				p.recorded += len(reports)
				p.mu.Unlock()
			},
		})
	}
	if err != nil {
		hangUp(p.conns)
		return nil, err
	}
	return p, nil
}

// arrive notes when a step came.
func (p *pulse) arrive(step *pb.ReadyStep) *pb.ReportStepResultRequest {
	now := time.Now()
	if i, err := strconv.Atoi(strings.TrimPrefix(step.GetTaskName(), p.name+".")); err == nil {
		p.mu.Lock()
		if i < len(p.beats) {
			b := &p.beats[i]
			p.times.start.record(now.Sub(b.at))
			p.times.last = now
			if b.answered.IsZero() {
				b.came = append(b.came, now) // which was first is known when the answer is here
			} else {
				p.times.wake.record(now.Sub(b.answered))
			}
		}
		p.mu.Unlock()
	}
	return succeed(step)
}

// run submits so many beats by the clock, waits until all their steps have ended, and tells how it went.
func (p *pulse) run(every time.Duration, beats int) (*pulseTimes, error) {
	return p.until(nil, every, beats)
}

// during beats as long as work takes, or a little longer.
func (p *pulse) during(every time.Duration, work func() error) (*pulseTimes, error) {
	var group errgroup.Group
	over := make(chan struct{})
	group.Go(func() error {
		defer close(over)
		return work()
	})
	times, err := p.until(over, every, int(patience/every))
	if workErr := group.Wait(); workErr != nil {
		err = workErr
	}
	return times, err
}

// until is run that ends early when over is closed.
func (p *pulse) until(over <-chan struct{}, every time.Duration, most int) (*pulseTimes, error) {
	times := newPulseTimes()
	p.mu.Lock()
	from, before := len(p.beats), p.stored
	p.beats = append(p.beats, make([]beat, most)...)
	p.times = times
	p.mu.Unlock()
	err := onTime(p.crew.ctx, every, most, over, func(i int, at time.Time) error { return p.submit(from+i, at) })
	if err != nil {
		return nil, err
	}
	err = p.crew.await(func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.recorded == p.stored
	})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stored > before {
		times.perSecond = float64(p.stored-before) / times.last.Sub(p.beats[from].at).Seconds()
	}
	return times, nil
}

// submit submits a beat that was to be submitted at that time.
func (p *pulse) submit(i int, at time.Time) error {
	p.mu.Lock()
	p.beats[i].at = at
	times := p.times
	p.mu.Unlock()
	task := submission(p.ref, p.name+"."+strconv.Itoa(i))
	var err error
	if p.size == 1 {
		_, err = p.tasks.SubmitTask(p.crew.ctx, &pb.SubmitTaskRequest{Namespace: p.namespace, Task: task})
	} else {
		request := &pb.BatchSubmitTasksRequest{Namespace: p.namespace}
		for range p.size {
			request.Tasks = append(request.Tasks, task)
		}
		_, err = p.tasks.BatchSubmitTasks(p.crew.ctx, request)
	}
	if err != nil {
		return fmt.Errorf("submitting on time: %w", err)
	}
	now := time.Now()
	times.submit.record(now.Sub(at))
	p.w.tasks.Add(int64(p.size))
	p.w.steps.Add(int64(p.size))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stored += p.size
	b := &p.beats[i]
	b.answered = now
	for range b.came {
		times.wake.record(0)
	}
	b.came = nil
	return nil
}

// close ends the worker.
func (p *pulse) close() error {
	err := p.crew.close()
	hangUp(p.conns)
	return err
}
