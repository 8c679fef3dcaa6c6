package rpc_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/rpc"
	"github.com/taskerhq/tasker/internal/task"
)

var noon = time.Date(2031, 5, 1, 12, 0, 0, 0, time.UTC)

// fullPolicy has a value of its own in each field.
func fullPolicy() *pb.CircuitPolicy {
	return &pb.CircuitPolicy{
		WindowDuration: durationpb.New(time.Second), MinObservations: proto.Int32(2), FailureRateThreshold: proto.Float64(0.3),
		SlowCallDuration: durationpb.New(4 * time.Second), SlowRateThreshold: proto.Float64(0.5), MinFailingWorkers: proto.Int32(6),
		OpenDuration: durationpb.New(7 * time.Second), MaxOpenDuration: durationpb.New(8 * time.Second), MaxProbes: proto.Int32(9),
		CloseAfterSuccesses: proto.Int32(10), RecoveryWave: proto.Int32(11), MaxInFlight: proto.Int32(12), Rate: proto.Float64(13),
		SuspendBudgets: proto.Bool(true),
	}
}

// unset are the names of a message's fields that hold nothing.
func unset(m proto.Message) (names []string) {
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if !m.ProtoReflect().Has(fields.Get(i)) {
			names = append(names, string(fields.Get(i).Name()))
		}
	}
	return names
}

// No field of a policy is forgotten, and no two are mixed up.
func TestAPolicyIsCarriedWhole(t *testing.T) {
	want := fullPolicy()
	if empty := unset(want); empty != nil {
		t.Fatalf("the test leaves out %v", empty)
	}
	policy := rpc.CircuitPolicy(want)
	if got := rpc.Circuit(&task.Circuit{Policy: policy}); !proto.Equal(got.GetPolicy(), want) {
		t.Errorf("got %v, want %v", got.GetPolicy(), want)
	}
	if policy := rpc.CircuitPolicy(nil); policy != (task.CircuitPolicy{}) {
		t.Errorf("no policy became %v", policy)
	}
	if policy := rpc.CircuitPolicy(&pb.CircuitPolicy{SuspendBudgets: proto.Bool(false)}); policy.SuspendBudgets == nil || *policy.SuspendBudgets {
		t.Error("a value that is false became unset")
	}
	if policy := rpc.CircuitPolicy(&pb.CircuitPolicy{SlowCallDuration: durationpb.New(1)}); *policy.SlowCallDuration != time.Microsecond {
		t.Errorf("a nanosecond became %v, and may not become 0", *policy.SlowCallDuration)
	}
}

func TestACircuitIsShownWhole(t *testing.T) {
	later := noon.Add(time.Hour)
	policy := rpc.CircuitPolicy(fullPolicy())
	c := &task.Circuit{
		ID: 1, Namespace: "n", Name: "user_service", State: task.CircuitRecovering, Generation: 2, Since: noon, Cause: task.CauseProbesPassed,
		OpenUntil: &later, OpenFor: 3 * time.Second, Hold: &task.CircuitHold{Reason: "r", Actor: "a", From: noon, Until: &later},
		Policy: policy, InForce: policy, Observed: 4, Failed: 5, Slow: 6, FailingWorkers: 7, Probes: 8, Wave: 9, WaveDone: 10, InFlight: 11,
		Waiting: 12, Barred: []task.BarredWorker{{WorkerID: "w", Until: later}}, CreatedAt: noon,
	}
	m := rpc.Circuit(c)
	if empty := append(unset(m), unset(m.GetHold())...); empty != nil {
		t.Errorf("nothing in %v", empty)
	}
	got := fmt.Sprint(m.GetState(), m.GetGeneration(), m.GetCause(), m.GetLastOpenDuration().AsDuration(), m.GetObservedCalls(), m.GetFailedCalls(),
		m.GetSlowCalls(), m.GetFailingWorkers(), m.GetSuccessfulProbes(), m.GetWave(), m.GetWaveSuccesses(), m.GetInFlight(), m.GetWaitingSteps())
	if want := "CIRCUIT_STATE_RECOVERING 2 CIRCUIT_CAUSE_PROBES_PASSED 3s 4 5 6 7 8 9 10 11 12"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !m.GetSince().AsTime().Equal(noon) || !m.GetOpenUntil().AsTime().Equal(later) || !m.GetHold().GetEndsAt().AsTime().Equal(later) ||
		m.GetBarredWorkers()[0].GetWorkerId() != "w" || !m.GetBarredWorkers()[0].GetUntil().AsTime().Equal(later) {
		t.Errorf("times: %v", m)
	}
	// The default policy of a namespace is a circuit of nothing but policies.
	defaults := rpc.Circuit(&task.Circuit{Namespace: "n", InForce: policy})
	if set := len(unset(defaults)); set != (&pb.Circuit{}).ProtoReflect().Descriptor().Fields().Len()-3 {
		t.Errorf("default policy: %v", defaults)
	}
}

func TestAnEventIsShownWhole(t *testing.T) {
	later := noon.Add(time.Hour)
	m := rpc.CircuitEvent(&task.CircuitEvent{
		ID: 1, Circuit: "c", At: noon, Generation: 2, From: task.CircuitClosed, To: task.CircuitOpen, Cause: task.CauseReach, OpenUntil: &later, Wave: 3,
		Step: lease.Step, Dispatch: 4, Workers: []string{"w"}, Actor: "a", Reason: "r", Hold: &task.CircuitHold{Reason: "h"}, Observed: 5, Failed: 6,
		Slow: 7, Policy: rpc.CircuitPolicy(fullPolicy()),
	})
	if empty := unset(m); empty != nil {
		t.Errorf("nothing in %v", empty)
	}
	got := fmt.Sprint(m.GetEventId(), m.GetGeneration(), m.GetFromState(), m.GetToState(), m.GetCause(), m.GetWave(), m.GetStepId(), m.GetDispatch(),
		m.GetWorkerIds(), m.GetObservedCalls(), m.GetFailedCalls(), m.GetSlowCalls())
	want := fmt.Sprint("1", 2, pb.CircuitState_CIRCUIT_STATE_CLOSED, pb.CircuitState_CIRCUIT_STATE_OPEN, pb.CircuitCause_CIRCUIT_CAUSE_REACH, 3,
		lease.Step.String(), 4, []string{"w"}, 5, 6, 7)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if id := rpc.CircuitEvent(&task.CircuitEvent{ID: 1}).GetStepId(); id != "" {
		t.Errorf("an event of no step names %s", id)
	}
}

func TestTheFieldsThatARequestChanges(t *testing.T) {
	for name, c := range map[string]struct {
		policy *pb.CircuitPolicy
		mask   []string
		want   string
	}{
		"nothing":                        {nil, nil, ""},
		"an empty policy":                {&pb.CircuitPolicy{}, nil, ""},
		"what is set":                    {&pb.CircuitPolicy{Rate: proto.Float64(1), WindowDuration: durationpb.New(time.Second)}, nil, "window_duration rate"},
		"a value that is false":          {&pb.CircuitPolicy{SuspendBudgets: proto.Bool(false)}, nil, "suspend_budgets"},
		"what the mask names, unset":     {nil, []string{"rate", "max_in_flight"}, "max_in_flight rate"},
		"no more than the mask names":    {&pb.CircuitPolicy{Rate: proto.Float64(1), MaxProbes: proto.Int32(2)}, []string{"rate"}, "rate"},
		"what the mask names twice":      {nil, []string{"rate", "rate"}, "rate"},
		"everything, and nothing else":   {fullPolicy(), nil, "all"},
		"everything that a mask can say": {nil, []string{"all"}, "all"},
	} {
		all := strings.Join(unset(&pb.CircuitPolicy{}), " ")
		want := strings.Replace(c.want, "all", all, 1)
		req := &pb.SetCircuitPolicyRequest{Policy: c.policy}
		if c.mask != nil {
			req.UpdateMask = &fieldmaskpb.FieldMask{Paths: strings.Fields(strings.Replace(strings.Join(c.mask, " "), "all", all, 1))}
		}
		if got := strings.Join(rpc.PolicyFields(req), " "); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// Every circuit and event is in exactly one frame, in order, and the revision is in the last frame alone.
func TestAWatchOfCircuitsIsCutIntoFrames(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for name, f := range map[string]engine.CircuitFrame{
		"an empty snapshot": {Snapshot: true, Revision: "7"},
		"an empty change":   {Revision: "7"},
		"a snapshot":        {Snapshot: true, Revision: "7", Circuits: circuitsNamed(9000, long)},
		"a change":          {Revision: "7", Circuits: circuitsNamed(5000, long), Events: eventsNumbered(5000, long)},
		"events alone":      {Revision: "7", Events: eventsNumbered(9000, long)},
	} {
		var names []string
		var ids []string
		frames := rpc.CircuitFrames(f)
		for i, m := range frames {
			last := i == len(frames)-1
			if size := proto.Size(m); size > rpc.MaxFrame+100 {
				t.Errorf("%s: a frame of %d bytes", name, size)
			}
			if (m.GetRevision() != "") != last || last && m.GetRevision() != "7" {
				t.Errorf("%s: frame %d of %d has revision %q", name, i, len(frames), m.GetRevision())
			}
			if f.Snapshot != (m.GetSnapshot() != nil) || f.Snapshot && m.GetSnapshot().GetMore() == last {
				t.Errorf("%s: frame %d of %d: more %v", name, i, len(frames), m.GetSnapshot().GetMore())
			}
			for _, c := range slices.Concat(m.GetSnapshot().GetCircuits(), m.GetChange().GetCircuits()) {
				names = append(names, c.GetName())
			}
			for _, e := range m.GetChange().GetEvents() {
				ids = append(ids, e.GetEventId())
			}
		}
		if len(frames) == 0 || len(f.Circuits) > 0 && len(frames) < 3 {
			t.Errorf("%s: %d frames", name, len(frames))
		}
		if len(names) != len(f.Circuits) || len(ids) != len(f.Events) {
			t.Fatalf("%s: %d circuits and %d events came of %d and %d", name, len(names), len(ids), len(f.Circuits), len(f.Events))
		}
		for i, c := range f.Circuits {
			if names[i] != c.Name {
				t.Fatalf("%s: circuit %d is %s", name, i, names[i])
			}
		}
		for i, e := range f.Events {
			if ids[i] != fmt.Sprint(e.ID) {
				t.Fatalf("%s: event %d is %s", name, i, ids[i])
			}
		}
	}
	huge := &task.Circuit{Barred: make([]task.BarredWorker, 20_000)}
	for i := range huge.Barred {
		huge.Barred[i].WorkerID = long[:255]
	}
	if frames := rpc.CircuitFrames(engine.CircuitFrame{Circuits: []*task.Circuit{huge, huge}}); len(frames) != 2 {
		t.Errorf("two circuits that fit no frame came in %d", len(frames))
	}
}

func circuitsNamed(n int, text string) []*task.Circuit {
	list := make([]*task.Circuit, n)
	for i := range list {
		list[i] = &task.Circuit{Name: fmt.Sprint("c", i), Hold: &task.CircuitHold{Reason: text}}
	}
	return list
}

func eventsNumbered(n int, text string) []*task.CircuitEvent {
	list := make([]*task.CircuitEvent, n)
	for i := range list {
		list[i] = &task.CircuitEvent{ID: int64(i + 1), Reason: text}
	}
	return list
}

func TestBlameAndReach(t *testing.T) {
	const (
		dependency = pb.Blame_BLAME_DEPENDENCY
		worker     = pb.Blame_BLAME_WORKER
		step       = pb.Blame_BLAME_STEP
		circuit    = pb.Reach_REACH_CIRCUIT
	)
	with := func(b pb.Blame, r pb.Reach) task.Report {
		return decoded(t, fails(func(f *pb.StepRetryableFailure) { f.Blame, f.Reach = b, r }))
	}
	for _, c := range []struct {
		blame  pb.Blame
		reach  pb.Reach
		blamed task.Blame
		all    bool
	}{
		{0, 0, task.BlameDependency, false},
		{0, circuit, task.BlameDependency, true},
		{dependency, circuit, task.BlameDependency, true},
		{worker, circuit, task.BlameWorker, false},
		{step, circuit, task.BlameStep, false},
		{worker, 0, task.BlameWorker, false},
	} {
		if r := with(c.blame, c.reach); r.Blame != c.blamed || r.ReachCircuit != c.all {
			t.Errorf("%s %s: %s, circuit %v", c.blame, c.reach, r.Blame, r.ReachCircuit)
		}
	}
	if r := decoded(t, succeeds("")); r.Blame != "" || r.ReachCircuit {
		t.Errorf("a success blames %q", r.Blame)
	}
	if with(0, 0).Digest != with(dependency, 0).Digest {
		t.Error("a blame that is the default changes the digest")
	}
	if a, b, c := with(0, 0).Digest, with(worker, 0).Digest, with(step, 0).Digest; a == b || b == c || a == c {
		t.Error("the digest does not tell blames apart")
	}
	// What a release that knew no blame would have made of this report.
	const before = "27ac47ad95d174307c8235aeaa067d9c4fc62fabc2e774cfca56fd619f318d72"
	if got := fmt.Sprintf("%x", with(0, 0).Digest); got != before {
		t.Errorf("the digest of a failure is %s, and was %s", got, before)
	}
}

func TestWhatARunSawOfCircuits(t *testing.T) {
	req := succeeds("")
	plain := decoded(t, req)
	req.RunDuration = durationpb.New(1500 * time.Millisecond)
	req.Observations = []*pb.CircuitObservation{
		{Circuit: "a", Calls: 3, FailedCalls: 1}, {Circuit: "b", Calls: 10, SlowCalls: 2}, {Circuit: "a", Calls: 2, FailedCalls: 2, SlowCalls: 1},
	}
	if rpc.Obvious(req) {
		t.Error("observations pass without a look")
	}
	r := decoded(t, req)
	want := []task.CircuitObservation{{Circuit: "a", Calls: 5, Failed: 3, Slow: 1}, {Circuit: "b", Calls: 10, Slow: 2}}
	if !slices.Equal(r.Observations, want) || r.RunDuration != 1500*time.Millisecond {
		t.Errorf("%v %v", r.Observations, r.RunDuration)
	}
	if r.Digest != plain.Digest {
		t.Error("they are part of the digest")
	}
	for _, d := range []*durationpb.Duration{nil, {}, {Seconds: -1}, {Seconds: 366 * 86400}, {Seconds: 1, Nanos: -1}, {Seconds: 1 << 62}} {
		req.RunDuration = d
		if got := decoded(t, req).RunDuration; got != 0 {
			t.Errorf("a run of %v became %v", d, got)
		}
	}
}

func TestTheAnswerSaysHowFarAFailureReached(t *testing.T) {
	failed, succeeded := decoded(t, fails(func(*pb.StepRetryableFailure) {})), decoded(t, succeeds(""))
	for _, c := range []struct {
		report task.Report
		answer task.Reported
		want   pb.Reach
	}{
		{failed, task.Reported{}, pb.Reach_REACH_STEP},
		{failed, task.Reported{ReachedCircuit: true, ChangedCircuits: []string{"c"}}, pb.Reach_REACH_CIRCUIT},
		{succeeded, task.Reported{}, pb.Reach_REACH_UNSPECIFIED},
	} {
		got := rpc.Reported(&c.report, &c.answer)
		if got.GetAppliedReach() != c.want || !slices.Equal(got.GetChangedCircuits(), c.answer.ChangedCircuits) {
			t.Errorf("%s of %v: %v", c.report.Outcome, c.answer, got)
		}
	}
}

func TestStepsSayWhatTheyWaitFor(t *testing.T) {
	s := rpc.Step(&task.StepView{WaitingFor: "paused", WaitingUntil: &noon})
	if s.GetWaitingFor() != pb.WaitingFor_WAITING_FOR_PAUSED || !s.GetWaitingUntil().AsTime().Equal(noon) {
		t.Errorf("%v", s)
	}
	if s := rpc.Step(&task.StepView{}); s.GetWaitingFor() != pb.WaitingFor_WAITING_FOR_UNSPECIFIED || s.GetWaitingUntil() != nil {
		t.Errorf("%v", s)
	}
	if r := rpc.ReadyStep(&task.ReadyStep{Circuit: "c", Probe: true}); r.GetCircuit() != "c" || !r.GetProbe() {
		t.Errorf("%v", r)
	}
}

// What the services themselves refuse, and what they answer where there is nothing.
func TestCircuitServiceOverTheWire(t *testing.T) {
	circuits := pb.NewCircuitServiceClient(serve(t, rpc.Settings{}))
	refusal := func(err error) string {
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				return fmt.Sprint(status.Code(err), " ", info.GetReason(), " ", info.GetMetadata()["field"])
			}
		}
		return fmt.Sprint(err)
	}
	_, err := circuits.GetCircuit(t.Context(), &pb.GetCircuitRequest{Circuit: "nobody"})
	if got := refusal(err); got != "NotFound CIRCUIT_NOT_FOUND " {
		t.Error(got)
	}
	_, err = circuits.ReleaseCircuit(t.Context(), &pb.ReleaseCircuitRequest{Circuit: "nobody"})
	if got := refusal(err); got != "NotFound CIRCUIT_NOT_FOUND " {
		t.Error(got)
	}
	_, err = circuits.SetCircuitPolicy(t.Context(), &pb.SetCircuitPolicyRequest{Circuit: "c", Policy: &pb.CircuitPolicy{}})
	if got := refusal(err); got != "InvalidArgument VALIDATION policy" {
		t.Error(got)
	}
	for _, token := range []string{"x", "AAAAAAAAAAAAAAAAAAAAAAAA"} {
		if _, err = circuits.ListCircuits(t.Context(), &pb.ListCircuitsRequest{PageToken: token}); refusal(err) != "InvalidArgument BAD_PAGE_TOKEN page_token" {
			t.Error(refusal(err))
		}
		if _, err = circuits.ListCircuitEvents(t.Context(), &pb.ListCircuitEventsRequest{PageToken: token}); refusal(err) != "InvalidArgument BAD_PAGE_TOKEN page_token" {
			t.Error(refusal(err))
		}
	}
	defaults, err := circuits.GetCircuit(t.Context(), &pb.GetCircuitRequest{Namespace: "unheard-of"})
	if err != nil || defaults.GetCircuit().GetNamespace() != "unheard-of" || defaults.GetCircuit().GetName() != "" {
		t.Errorf("defaults: %v, %v", defaults, err)
	}
	list, err := circuits.ListCircuits(t.Context(), &pb.ListCircuitsRequest{Namespace: "unheard-of"})
	if err != nil || len(list.GetCircuits()) > 0 || list.GetNextPageToken() != "" {
		t.Errorf("list: %v, %v", list, err)
	}
	stream, err := circuits.WatchCircuits(t.Context(), &pb.WatchCircuitsRequest{Namespace: "unheard-of"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || first.GetSnapshot() == nil || first.GetSnapshot().GetMore() || first.GetRevision() == "" {
		t.Errorf("first frame of a watch: %v, %v", first, err)
	}
}
