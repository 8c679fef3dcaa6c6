package conformance_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/template"
)

// The seed's own YAML.
const seedYAML = `steps:
  - name: create_user_account
    retry_limit: 5          # Circuit opens after 5 failures
    retryable: true
    handler_config:
      timeout: 30

  - name: send_billing_notification
    retry_limit: 3          # More sensitive - money involved
    retryable: true
    handler_config:
      timeout: 60
`

func (s *system) register(tpl *pb.Template) (*pb.RegisterTemplateResponse, error) {
	s.t.Helper()
	return s.templates.RegisterTemplate(s.within(), &pb.RegisterTemplateRequest{Template: tpl})
}

func fromTemplate(name string) *pb.TaskSubmission {
	return &pb.TaskSubmission{Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: name}}}
}

func TestTemplate_TheSeedsYAMLRegistersUnchangedAndRuns(t *testing.T) {
	s := start(t)
	tpl, err := template.Parse("registration.yaml", []byte(seedYAML), "")
	if err != nil {
		t.Fatal(err)
	}
	made := must[*pb.RegisterTemplateResponse](t)(s.register(tpl))
	equal(t, "version", made.GetTemplate().GetVersion(), "0.1.0")
	again := must[*pb.RegisterTemplateResponse](t)(s.register(tpl))
	equal(t, "already registered", again.GetAlreadyRegistered(), true)
	s.submit(fromTemplate("registration"))
	w := s.worker(2, "create_user_account", "send_billing_notification")
	steps := w.several(2)
	for name, want := range map[string]struct {
		limit   int32
		timeout time.Duration
	}{"create_user_account": {5, 30 * time.Second}, "send_billing_notification": {3, time.Minute}} {
		x := steps[name]
		if x.GetRetryLimit() != want.limit || x.GetRunTimeout().AsDuration() != want.timeout || x.GetHandler() != name || !strings.Contains(x.GetHandlerConfig(), "timeout") {
			t.Errorf("%s: %v", name, x)
		}
	}
}

func TestTemplate_EverySettingMayBeOverriddenPerTask(t *testing.T) {
	s := start(t)
	must[*pb.RegisterTemplateResponse](t)(s.register(&pb.Template{Name: "tpl", Steps: []*pb.StepDefinition{step("a"), step("b", "a")}}))
	sub := fromTemplate("tpl")
	sub.Priority = proto.Int32(2)
	o := &pb.StepOverride{
		Name: "a", RetryLimit: proto.Int32(7), Retryable: proto.Bool(false),
		Backoff:       &pb.BackoffPolicy{Initial: durationpb.New(3 * time.Second), Multiplier: proto.Float64(4), Max: durationpb.New(time.Minute), Jitter: proto.Float64(0.5)},
		MaxRetryAfter: durationpb.New(time.Hour), Lease: durationpb.New(9 * time.Second), MaxLostLeases: proto.Int32(8),
		MaxElapsed: durationpb.New(time.Hour), Priority: proto.Int32(0), NonRetryableCodes: &pb.NonRetryableCodes{Codes: []string{"X"}},
	}
	sub.Overrides = []*pb.StepOverride{o}
	plan := must[*pb.ValidateTaskResponse](t)(s.tasks.ValidateTask(s.within(), &pb.ValidateTaskRequest{Task: sub}))
	a, b := plan.GetSteps()[0].GetDefinition(), plan.GetSteps()[1].GetDefinition()
	if a.GetRetryLimit() != 7 || a.GetRetryable() || !proto.Equal(a.GetBackoff(), o.GetBackoff()) || !proto.Equal(a.GetMaxRetryAfter(), o.GetMaxRetryAfter()) ||
		!proto.Equal(a.GetLease(), o.GetLease()) || a.GetMaxLostLeases() != 8 || !proto.Equal(a.GetMaxElapsed(), o.GetMaxElapsed()) ||
		a.GetPriority() != 0 || !slices.Equal(a.GetNonRetryableCodes(), []string{"X"}) {
		t.Errorf("overridden: %v", a)
	}
	if b.GetRetryLimit() != 3 || !b.GetRetryable() || b.GetBackoff().GetInitial().AsDuration() != 2*time.Second || b.GetBackoff().GetMax().AsDuration() != 30*time.Second ||
		b.GetBackoff().GetMultiplier() != 2 || b.GetMaxRetryAfter().AsDuration() != 24*time.Hour || b.GetMaxLostLeases() != 3 || b.GetPriority() != 2 {
		t.Errorf("defaults: %v", b)
	}
	equal(t, "the task's priority", plan.GetSteps()[1].GetDependencyLevel(), 1)
	s.submit(sub)
	x := s.worker(1).next()
	equal(t, "retry_limit", x.GetRetryLimit(), 7)
	equal(t, "not retryable in this task", s.report(retryable(x)).GetStep().GetParkedReason(), pb.ParkedReason_PARKED_REASON_PERMANENT)
	plain := s.submit(fromTemplate("tpl"))
	equal(t, "another task's", s.named(plain.GetTaskId(), "a").GetRetryLimit(), 3)
	equal(t, "the default priority", s.named(plain.GetTaskId(), "a").GetPriority(), 1)
	sub.Overrides = []*pb.StepOverride{{Name: "a"}, {Name: "a"}}
	invalid(t, s.validate(sub))
	sub.Overrides = []*pb.StepOverride{{Name: "z"}}
	refused(t, s.validate(sub), codes.InvalidArgument, "UNKNOWN_DEPENDENCY")
}

func TestTemplate_TasksArePinnedToTheVersionTheyWereSubmittedBy(t *testing.T) {
	s := start(t)
	body := func(names ...string) *pb.Template {
		tpl := &pb.Template{Name: "tpl"}
		for _, n := range names {
			tpl.Steps = append(tpl.Steps, step(n))
		}
		return tpl
	}
	must[*pb.RegisterTemplateResponse](t)(s.register(body("a")))
	old := s.submit(fromTemplate("tpl"))
	must[*pb.RegisterTemplateResponse](t)(s.register(body("b")))
	young := s.submit(fromTemplate("tpl"))
	equal(t, "the old one's version", s.task(old.GetTaskId()).GetTask().GetTemplate().GetVersion(), "0.1.0")
	equal(t, "its step", s.all(old.GetTaskId())[0].GetName(), "a")
	equal(t, "the young one's version", s.task(young.GetTaskId()).GetTask().GetTemplate().GetVersion(), "0.1.1")
	equal(t, "its step", s.all(young.GetTaskId())[0].GetName(), "b")
	exact := fromTemplate("tpl")
	exact.GetTemplate().Version = proto.String("0.1.0")
	equal(t, "by version", s.all(s.submit(exact).GetTaskId())[0].GetName(), "a")
}

func TestTemplate_LatestIsTheGreatestAsSemverSorts(t *testing.T) {
	s := start(t)
	for i, v := range []string{"0.9.0", "0.10.0", "0.10.0-rc.1", "0.2.0", "1.0.0-alpha"} {
		must[*pb.RegisterTemplateResponse](t)(s.register(&pb.Template{
			Name: "tpl", Version: proto.String(v), Description: fmt.Sprint(i), Steps: []*pb.StepDefinition{step("a")},
		}))
	}
	got := must[*pb.GetTemplateResponse](t)(s.templates.GetTemplate(s.within(), &pb.GetTemplateRequest{Template: &pb.TemplateRef{Name: "tpl"}}))
	equal(t, "latest", got.GetTemplate().GetVersion(), "0.10.0")
	latest := must[*pb.ListTemplatesResponse](t)(s.templates.ListTemplates(s.within(), &pb.ListTemplatesRequest{LatestOnly: true})).GetTemplates()
	if len(latest) != 1 || latest[0].GetVersion() != "0.10.0" {
		t.Errorf("latest only: %v", latest)
	}
}

func TestTemplate_BadGraphsAreRefusedWithThePathOrTheName(t *testing.T) {
	s := start(t)
	metadata := func(err error) map[string]string { return detail[*errdetails.ErrorInfo](err).GetMetadata() }
	for name, c := range map[string]struct {
		steps  []*pb.StepDefinition
		reason string
		key    string
		value  string
	}{
		"circle":         {[]*pb.StepDefinition{step("a", "c"), step("b", "a"), step("c", "b")}, "DAG_CYCLE", "path", "a -> b -> c -> a"},
		"self edge":      {[]*pb.StepDefinition{step("a", "a")}, "DAG_CYCLE", "path", "a -> a"},
		"unknown parent": {[]*pb.StepDefinition{step("a", "z")}, "UNKNOWN_DEPENDENCY", "dependency", "z"},
		"same name":      {[]*pb.StepDefinition{step("a"), step("a")}, "DUPLICATE_STEP", "step", "a"},
		"parent twice":   {[]*pb.StepDefinition{step("a"), step("b", "a", "a")}, "VALIDATION", "field", "task.inline.steps[1].depends_on[1]"},
		"no steps":       {nil, "VALIDATION", "field", "task.inline.steps"},
	} {
		err := s.validate(inline(c.steps...))
		t.Run(name, func(t *testing.T) {
			refused(t, err, codes.InvalidArgument, c.reason)
			equal(t, c.key, metadata(err)[c.key], c.value)
		})
		_, err = s.tasks.SubmitTask(s.within(), &pb.SubmitTaskRequest{Task: inline(c.steps...)})
		refused(t, err, codes.InvalidArgument, c.reason)
		_, err = s.register(&pb.Template{Name: "tpl", Steps: c.steps})
		refused(t, err, codes.InvalidArgument, c.reason)
	}
}

func TestTemplate_ContextIsHeldAgainstItsSchemaAtSubmit(t *testing.T) {
	s := start(t)
	must[*pb.RegisterTemplateResponse](t)(s.register(&pb.Template{
		Name: "tpl", ContextSchema: `{"type":"object","required":["id"],"properties":{"id":{"type":"integer"}}}`, Steps: []*pb.StepDefinition{step("a")},
	}))
	for context, ok := range map[string]bool{`{"id":9007199254740993}`: true, `{"id":"x"}`: false, `{}`: false, ``: false} {
		sub := fromTemplate("tpl")
		sub.Context = context
		_, err := s.tasks.SubmitTask(s.within(), &pb.SubmitTaskRequest{Task: sub})
		if ok != (err == nil) {
			t.Errorf("context %q: %v", context, err)
		}
		if err != nil {
			invalid(t, err)
		}
	}
	_, err := s.register(&pb.Template{Name: "bad", ContextSchema: `{"type":"nonsense"}`, Steps: []*pb.StepDefinition{step("a")}})
	invalid(t, err)
}
