package rpc

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// A step's settings where its definition leaves them out. Those that the database fills in are here only to be shown.
const (
	defaultRetryLimit    = 3
	defaultMaxLostLeases = 3
	defaultPriority      = 1
	defaultInitial       = 2 * time.Second
	defaultMultiplier    = 2
	defaultMax           = 30 * time.Second
	defaultJitter        = 0.1
	defaultMaxRetryAfter = 24 * time.Hour
)

// maxRunTimeout is the longest handler_config.timeout.
const maxRunTimeout = 365 * 24 * time.Hour

// definition is the steps of a template, or of an inline task, checked: step n is steps[n-1].
type definition struct {
	steps    []task.StepSpec // priorities where one is set
	priority []bool          // whether the step sets its own
	number   map[string]int
	largest  int     // bytes of the largest handler_config
	largestN int     // whose that is
	schema   *schema // nil: any context will do
	ref      *pb.TemplateRef
}

// checkDefinition checks steps that have passed the contract's rules one by one: their graph, their payloads, and what no
// rule can say.
func checkDefinition(steps []*pb.StepDefinition) (*definition, error) {
	named := make([]task.NamedStep, len(steps))
	for i, s := range steps {
		named[i] = task.NamedStep{Name: s.GetName(), DependsOn: s.GetDependsOn()}
	}
	parents, err := task.CheckGraph(named)
	if err != nil {
		return nil, err
	}
	d := &definition{steps: make([]task.StepSpec, len(steps)), priority: make([]bool, len(steps)), number: make(map[string]int, len(steps)), largestN: 1}
	for i, s := range steps {
		spec, err := stepSpec(s, fmt.Sprintf("steps[%d]", i))
		if err != nil {
			return nil, err
		}
		spec.Parents = parents[i]
		d.steps[i], d.priority[i], d.number[s.GetName()] = spec, s.Priority != nil, i+1
		if len(spec.HandlerConfig) > d.largest {
			d.largest, d.largestN = len(spec.HandlerConfig), i+1
		}
	}
	return d, nil
}

func stepSpec(s *pb.StepDefinition, field string) (task.StepSpec, error) {
	if err := checkObject(field+".handler_config", s.GetHandlerConfig(), maxPayload); err != nil {
		return task.StepSpec{}, err
	}
	timeout, err := runTimeout(field+".handler_config", s.GetHandlerConfig())
	if err != nil {
		return task.StepSpec{}, err
	}
	spec := task.StepSpec{
		Name: s.GetName(), Handler: s.GetName(), Circuit: s.GetCircuit(), Priority: int(s.GetPriority()), HandlerConfig: s.GetHandlerConfig(),
		Policy: task.Policy{
			RetryLimit: defaultRetryLimit, Retryable: true, MaxLostLeases: defaultMaxLostLeases,
			MaxRetryAfter: span(s.GetMaxRetryAfter()), Lease: span(s.GetLease()), MaxElapsed: span(s.GetMaxElapsed()),
			RunTimeout: timeout, NonRetryable: s.GetNonRetryableCodes(),
		},
	}
	if s.Handler != nil {
		spec.Handler = s.GetHandler()
	}
	if s.RetryLimit != nil {
		spec.RetryLimit = int(s.GetRetryLimit())
	}
	if s.Retryable != nil {
		spec.Retryable = s.GetRetryable()
	}
	if s.MaxLostLeases != nil {
		spec.MaxLostLeases = int(s.GetMaxLostLeases())
	}
	setBackoff(&spec.Policy, s.GetBackoff())
	return spec, nil
}

// setBackoff takes over the fields that are set.
func setBackoff(p *task.Policy, b *pb.BackoffPolicy) {
	if b == nil {
		return
	}
	if b.GetInitial() != nil {
		p.Initial = span(b.GetInitial())
	}
	if b.Multiplier != nil {
		p.Multiplier = proto.Float64(b.GetMultiplier())
	}
	if b.GetMax() != nil {
		p.Max = span(b.GetMax())
	}
	if b.Jitter != nil {
		p.Jitter = proto.Float64(b.GetJitter())
	}
}

// override changes a step's settings for one task.
func override(spec *task.StepSpec, o *pb.StepOverride) {
	setBackoff(&spec.Policy, o.GetBackoff())
	if o.RetryLimit != nil {
		spec.RetryLimit = int(o.GetRetryLimit())
	}
	if o.Retryable != nil {
		spec.Retryable = o.GetRetryable()
	}
	if o.GetMaxRetryAfter() != nil {
		spec.MaxRetryAfter = span(o.GetMaxRetryAfter())
	}
	if o.GetLease() != nil {
		spec.Lease = span(o.GetLease())
	}
	if o.MaxLostLeases != nil {
		spec.MaxLostLeases = int(o.GetMaxLostLeases())
	}
	if o.GetMaxElapsed() != nil {
		spec.MaxElapsed = span(o.GetMaxElapsed())
	}
	if o.Priority != nil {
		spec.Priority = int(o.GetPriority())
	}
	if o.GetNonRetryableCodes() != nil {
		spec.NonRetryable = o.GetNonRetryableCodes().GetCodes()
	}
}

// runTimeout reads the one key of a handler_config that the server heeds: "timeout", a number of seconds.
func runTimeout(field, config string) (*time.Duration, error) {
	// Nearly every config is without it; a key may be spelled with escapes, though.
	if !strings.Contains(config, "timeout") && !strings.Contains(config, `\u`) {
		return nil, nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal([]byte(config), &keys); err != nil {
		return nil, task.Invalid(field, "must be one JSON object")
	}
	raw, ok := keys["timeout"]
	if !ok || bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	seconds, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || seconds <= 0 || seconds > maxRunTimeout.Seconds() {
		return nil, task.Invalid(field+".timeout", "must be a number of seconds above 0 and at most %.0f", maxRunTimeout.Seconds())
	}
	timeout := time.Duration(math.Ceil(seconds*1e6)) * time.Microsecond
	return &timeout, nil
}

// filledIn is a step's definition with every default and override filled in. What has no default, or one that depends on the
// worker, as the lease has, stays unset.
func filledIn(s *task.StepSpec, names func(int) string) *pb.StepDefinition {
	or := func(d *time.Duration, otherwise time.Duration) *durationpb.Duration {
		if d == nil {
			d = &otherwise
		}
		return durationpb.New(*d)
	}
	number := func(f *float64, otherwise float64) *float64 {
		if f == nil {
			f = &otherwise
		}
		return f
	}
	d := &pb.StepDefinition{
		Name: s.Name, Handler: &s.Handler, RetryLimit: proto.Int32(count(s.RetryLimit)), Retryable: &s.Retryable,
		Backoff: &pb.BackoffPolicy{
			Initial: or(s.Initial, defaultInitial), Multiplier: number(s.Multiplier, defaultMultiplier),
			Max: or(s.Max, defaultMax), Jitter: number(s.Jitter, defaultJitter),
		},
		MaxRetryAfter: or(s.MaxRetryAfter, defaultMaxRetryAfter), Lease: duration(s.Lease),
		MaxLostLeases: proto.Int32(count(s.MaxLostLeases)), MaxElapsed: duration(s.MaxElapsed), Priority: proto.Int32(count(s.Priority)),
		NonRetryableCodes: s.NonRetryable, HandlerConfig: orObject(s.HandlerConfig),
	}
	if s.Circuit != "" {
		d.Circuit = &s.Circuit
	}
	for _, no := range s.Parents {
		d.DependsOn = append(d.DependsOn, names(no))
	}
	return d
}

// orObject is a payload as it is handed on: an empty one means {}.
func orObject(object string) string {
	if object == "" {
		return "{}"
	}
	return object
}

// checkObject checks a payload that may be left out.
func checkObject(field, object string, limit int) error {
	if object == "" {
		return nil
	}
	return task.CheckObject(field, object, limit)
}

// plan is the steps in an order in which they could run: by level, then by name.
func plan(steps []task.StepSpec) []*pb.PlannedStep {
	parents := make([][]int, len(steps))
	for i := range steps {
		parents[i] = steps[i].Parents
	}
	levels := task.Levels(parents)
	planned := make([]*pb.PlannedStep, len(steps))
	for i := range steps {
		planned[i] = &pb.PlannedStep{
			Definition:      filledIn(&steps[i], func(no int) string { return steps[no-1].Name }),
			DependencyLevel: count(levels[i]),
		}
	}
	slices.SortFunc(planned, func(a, b *pb.PlannedStep) int {
		return cmp.Or(cmp.Compare(a.GetDependencyLevel(), b.GetDependencyLevel()), cmp.Compare(a.GetDefinition().GetName(), b.GetDefinition().GetName()))
	})
	return planned
}
