package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/server"
)

// watching is an open WatchTask call.
type watching struct {
	*system
	stream grpc.ServerStreamingClient[pb.WatchTaskResponse]
	cancel context.CancelFunc
}

func (s *system) watch(id string, change ...func(*pb.WatchTaskRequest)) *watching {
	s.t.Helper()
	r := &pb.WatchTaskRequest{TaskId: id}
	for _, c := range change {
		c(r)
	}
	ctx, cancel := context.WithCancel(s.within())
	stream, err := s.tasks.WatchTask(ctx, r)
	if err != nil {
		cancel()
		s.t.Fatalf("watching: %v", err)
	}
	return &watching{system: s, stream: stream, cancel: cancel}
}

func (w *watching) frame() *pb.WatchTaskResponse {
	w.t.Helper()
	f, err := w.stream.Recv()
	if err != nil {
		w.t.Fatalf("watching: %v\n%s", err, w.log)
	}
	return f
}

// taskOf is the task that a frame shows, nil of a heartbeat.
func taskOf(f *pb.WatchTaskResponse) *pb.Task {
	if f.GetSnapshot() != nil {
		return f.GetSnapshot().GetTask()
	}
	return f.GetChange().GetTask()
}

// until reads frames until one shows a state; it gives the last and whether the stream ended instead.
func (w *watching) until(state pb.TaskState) *pb.WatchTaskResponse {
	w.t.Helper()
	for {
		if f := w.frame(); taskOf(f).GetState() == state {
			return f
		}
	}
}

func (w *watching) ended() {
	w.t.Helper()
	if f, err := w.stream.Recv(); !errors.Is(err, io.EOF) {
		w.t.Errorf("the watch goes on with %v, %v", f, err)
	}
}

func TestWatch_EndsAfterTheFrameOfACompleteOrCancelledTask(t *testing.T) {
	s := start(t)
	made := s.submit(inline(step("a")))
	watch := s.watch(made.GetTaskId())
	if first := watch.frame(); len(first.GetSnapshot().GetSteps()) != 1 || first.GetSnapshot().GetMore() {
		t.Errorf("the first frame: %v", first)
	}
	s.report(success(s.worker(1).next(), ""))
	watch.until(pb.TaskState_TASK_STATE_COMPLETE)
	watch.ended()
	cancelled := s.submit(inline(step("a")))
	watch = s.watch(cancelled.GetTaskId())
	watch.frame()
	must[*pb.CancelTaskResponse](t)(s.cancelTask(cancelled.GetTaskId()))
	watch.until(pb.TaskState_TASK_STATE_CANCELLED)
	watch.ended()
	over := s.watch(cancelled.GetTaskId())
	over.until(pb.TaskState_TASK_STATE_CANCELLED)
	over.ended()
}

func TestWatch_StaysWithATaskInErrorUnlessItIsToldToStop(t *testing.T) {
	s := start(t)
	made := s.submit(inline(step("a")))
	stays := s.watch(made.GetTaskId())
	leaves := s.watch(made.GetTaskId(), func(r *pb.WatchTaskRequest) { r.UntilIdle = true })
	w := s.worker(1)
	x := w.next()
	s.report(permanent(x))
	leaves.until(pb.TaskState_TASK_STATE_ERROR)
	leaves.ended()
	stays.until(pb.TaskState_TASK_STATE_ERROR)
	must[*pb.Step](t)(s.retryStep(x.GetStepId()))
	stays.until(pb.TaskState_TASK_STATE_IN_PROGRESS)
	s.report(success(w.next(), ""))
	stays.until(pb.TaskState_TASK_STATE_COMPLETE)
	stays.ended()
}

func TestWatch_ResumesAfterARevisionWithoutAGap(t *testing.T) {
	s := start(t)
	made := s.submit(inline(step("a"), step("b", "a")))
	first := s.watch(made.GetTaskId())
	seen := first.frame().GetRevision()
	w := s.worker(1)
	s.report(success(w.next(), ""))
	b := w.next()
	s.beat(b)
	for running := false; !running; {
		f := first.frame()
		if f.GetRevision() <= seen {
			t.Errorf("revision %d after %d", f.GetRevision(), seen)
		}
		seen = f.GetRevision()
		for _, x := range f.GetChange().GetSteps() {
			running = running || x.GetName() == "b" && x.GetLease().GetConfirmedAt() != nil
		}
	}
	first.cancel()
	resume := func(r *pb.WatchTaskRequest) { r.AfterRevision = &seen }
	again := s.watch(made.GetTaskId(), resume)
	s.report(success(b, ""))
	last := again.until(pb.TaskState_TASK_STATE_COMPLETE)
	if last.GetRevision() <= seen {
		t.Errorf("revision %d after %d", last.GetRevision(), seen)
	}
	again.ended()
	seen = last.GetRevision()
	// Nothing has changed since: there is nothing to send, only the end.
	s.watch(made.GetTaskId(), resume).ended()
}

// A snapshot of many steps comes in several frames. One that is cut short must not look complete to who resumes.
func TestWatch_ASnapshotInSeveralFramesIsResumedFromBeforeIt(t *testing.T) {
	s := start(t)
	var defs []*pb.StepDefinition
	for i := range 1200 {
		defs = append(defs, step(fmt.Sprint("s", i)))
	}
	made := s.submit(inline(defs...))
	x := s.worker(1).next()
	s.beat(x)
	watch := s.watch(made.GetTaskId())
	names := map[string]bool{}
	var revisions []int64
	for {
		f := watch.frame()
		for _, step := range f.GetSnapshot().GetSteps() {
			names[step.GetName()] = true
		}
		revisions = append(revisions, f.GetRevision())
		if !f.GetSnapshot().GetMore() {
			break
		}
	}
	equal(t, "steps", len(names), 1200)
	equal(t, "frames", len(revisions) > 1, true)
	for i, r := range revisions[:len(revisions)-1] {
		if r >= revisions[len(revisions)-1] {
			t.Errorf("frame %d of an unfinished snapshot bears the revision %d: %v", i, r, revisions)
		}
	}
	// Resumed after the first frame, the whole comes again.
	again := s.watch(made.GetTaskId(), func(r *pb.WatchTaskRequest) { r.AfterRevision = &revisions[0] })
	equal(t, "the snapshot again", len(again.frame().GetSnapshot().GetSteps()) > 0, true)
}

func TestWatch_ASlowReaderIsSkippedForward(t *testing.T) {
	s := start(t)
	made := s.submit(inline(with(step("a"), retryLimit(1000), backoff(0, 0, 1))))
	watch := s.watch(made.GetTaskId())
	watch.frame()
	w := s.worker(1)
	const runs = 300
	for range runs {
		s.report(retryable(w.next()))
	}
	s.report(success(w.next(), ""))
	frames, last := 0, int64(0)
	for {
		f, err := watch.stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		frames++
		if f.GetRevision() < last {
			t.Errorf("revision %d after %d", f.GetRevision(), last)
		}
		last = f.GetRevision()
	}
	if events := int64(2*runs + 2); last < events {
		t.Errorf("the last revision is %d, for %d events", last, events)
	}
	t.Logf("%d frames for %d runs", frames, runs)
}

func TestWatch_SeesWhatAnotherServerDoes(t *testing.T) {
	s := start(t)
	other := startOn(t, s.db)
	made := s.submit(inline(step("a")))
	watch := other.watch(made.GetTaskId())
	watch.frame()
	s.report(success(s.worker(1).next(), ""))
	watch.until(pb.TaskState_TASK_STATE_COMPLETE)
	watch.ended()
}

func TestWatch_IdleOnesCarryHeartbeats(t *testing.T) {
	s := start(t)
	watch := s.watch(s.submit(inline(step("a"))).GetTaskId())
	revision := watch.frame().GetRevision()
	begun := time.Now()
	f := watch.frame()
	if took := time.Since(begun); f.GetHeartbeat().GetServerTime() == nil || f.GetRevision() != revision || took > 20*time.Second {
		t.Errorf("after %v: %v", took, f)
	}
}

func TestWatch_NumberOfThemIsBounded(t *testing.T) {
	s := start(t, func(c *server.Config) { c.MaxStreams = 2 })
	id := s.submit(inline(step("a"))).GetTaskId()
	one := s.watch(id)
	one.frame()
	s.watch(id).frame()
	refusal := func() error {
		w := s.watch(id)
		defer w.cancel()
		_, err := w.stream.Recv()
		return err
	}
	err := refusal()
	refused(t, err, codes.ResourceExhausted, "TOO_MANY_STREAMS")
	if retryIn(err) <= 0 {
		t.Errorf("no RetryInfo: %v", err)
	}
	one.cancel()
	s.eventually("a place is free", func() bool { return refusal() == nil })
	_, err = s.watch("1638400000").stream.Recv()
	refused(t, err, codes.NotFound, "TASK_NOT_FOUND")
	_, err = s.watch(id, func(r *pb.WatchTaskRequest) { r.AfterRevision = proto.Int64(-1) }).stream.Recv()
	invalid(t, err)
}
