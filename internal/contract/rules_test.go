package contract_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// files are the descriptors of every file of the contract.
var files = []protoreflect.FileDescriptor{
	pb.File_tasker_v1_circuit_proto,
	pb.File_tasker_v1_circuit_service_proto,
	pb.File_tasker_v1_errors_proto,
	pb.File_tasker_v1_step_proto,
	pb.File_tasker_v1_step_service_proto,
	pb.File_tasker_v1_task_proto,
	pb.File_tasker_v1_task_service_proto,
	pb.File_tasker_v1_template_proto,
	pb.File_tasker_v1_template_service_proto,
	pb.File_tasker_v1_worker_service_proto,
}

// newValidator compiles the rules of every message, and refuses to meet one that it has not compiled.
func newValidator(t *testing.T) protovalidate.Validator {
	t.Helper()
	var messages []protoreflect.MessageDescriptor
	for _, file := range files {
		for i := range file.Messages().Len() {
			messages = append(messages, file.Messages().Get(i))
		}
	}
	v, err := protovalidate.New(protovalidate.WithMessageDescriptors(messages...), protovalidate.WithDisableLazy())
	if err != nil {
		t.Fatalf("compiling the rules: %v", err)
	}
	return v
}

// values are what a field takes, up to each of its limits, and what it refuses, from one beyond.
type values struct{ good, bad []any }

var (
	name      = values{a("a", "create_user_account", "stripe/eu:v2.1-x", "größe", rep("a", 255)), a("", rep("a", 256), rep("é", 128), "a b", " a", "a\x00", "-a", "a@1")}
	optName   = name
	printable = values{a("w", "host 7 (eu)", rep("a", 255)), a("", rep("a", 256), "a\x00", "a\nb")}
	text255   = values{a("", "x y", rep("a", 255)), a(rep("a", 256), "a\x00", "a\tb")}
	namespace = values{a("", "a", "a.b_c-9", rep("a", 63)), a("A", "a b", "a/b", rep("a", 64), "é")}
	id        = values{a("1", "16384", "9223372036854775807"), a("", "0", "01", "-1", "1.0", "1e3", " 1", "a", rep("9", 20))}
	reason    = values{a("", "because\nof this", rep("a", 1024)), a(rep("a", 1025), "\x00")}
	version   = values{a("0.1.0", "1.2.3", "10.20.30", "1.0.0-rc.1", "999999999.0.0"), a("", "1", "1.2", "v1.2.3", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3 ", "1000000000.0.0")}
	token     = values{a("x", rep("a", 255)), a("", rep("a", 256))}
	tokens    = values{a([]string{}, many(10000, "x"), []string{rep("a", 255)}), a(many(10001, "x"), []string{rep("a", 256)})}
	pageSize  = values{a(int32(0), int32(1000), int32(math.MaxInt32)), a(int32(-1))}
	labels    = values{
		a(pairs(0), pairs(64), map[string]string{rep("k", 255): rep("v", 255), "k": ""}),
		a(pairs(65), map[string]string{"": "v"}, map[string]string{rep("k", 256): "v"}, map[string]string{"k": rep("v", 256)},
			map[string]string{"k=": "v"}, map[string]string{"k": "\x00"}, map[string]string{"\n": ""}),
	}
	instant = values{a(at(0), at(1), at(253402300799)), a(at(-1), at(253402300800), at(math.MaxInt64))}
	policy  = values{a(secs(0), secs(31536000)), a(secs(-1), secs(31536001), secs(1e18))} // delays of a policy
	above0  = values{a(nanos(1), secs(31536000)), a(secs(0), secs(-1), secs(31536001))}
	lease   = values{a(secs(5), secs(3600)), a(secs(0), nanos(4_999_999_999), nanos(3600_000_000_001))}
	wait    = values{a(secs(0), secs(60)), a(secs(-1), nanos(60_000_000_001))}
	codes   = values{a([]string{}, []string{rep("a", 255)}, many(100, "A")), a([]string{""}, []string{rep("a", 256)}, many(101, "A"))}
	someOf  = values{a(steps(1), steps(10000)), a(steps(0), steps(10001))}
	inScope = values{a(int32(0), int32(3)), a(int32(-1), int32(4))}
	orEmpty = values{append(a(""), name.good...), name.bad[1:]} // a circuit's name; empty: the namespace's default policy
	share   = values{a(1e-9, 0.5, 1.0), a(0.0, -0.1, 1.000001, math.NaN(), math.Inf(1))}
	opening = values{a(secs(1), secs(604800)), a(secs(0), nanos(999_999_999), nanos(604800_000_000_001), secs(-1))}
)

// upTo are the bounds of a number from 1 to n.
func upTo(n int32) values { return values{a(int32(1), n), a(int32(0), int32(-1), n+1)} }

// bounds has a line for each field that bears a rule.
var bounds = map[string]values{
	"TaskSubmission.name":               optName,
	"TaskSubmission.idempotency_key":    printable,
	"TaskSubmission.labels":             labels,
	"TaskSubmission.priority":           inScope,
	"TaskSubmission.not_before":         instant,
	"TaskSubmission.deadline":           instant,
	"TaskSubmission.overrides":          {a(overrides(0), overrides(10000)), a(overrides(10001))},
	"TraceContext.traceparent":          text255,
	"TraceContext.tracestate":           {a("", rep("a", 512)), a(rep("a", 513), "\x00")},
	"InlineSteps.steps":                 someOf,
	"SubmitTaskRequest.namespace":       namespace,
	"SubmitTaskRequest.task":            {a(inlineTask()), a(nil)},
	"SubmitTaskRequest.wait_duration":   wait,
	"BatchSubmitTasksRequest.namespace": namespace,
	"BatchSubmitTasksRequest.tasks":     {a(tasks(1), tasks(1000)), a(tasks(0), tasks(1001))},
	"ValidateTaskRequest.namespace":     namespace,
	"ValidateTaskRequest.task":          {a(inlineTask()), a(nil)},
	"GetTaskRequest.task_id":            id,
	"ListTasksRequest.namespace":        namespace,
	"ListTasksRequest.states":           states(5),
	"ListTasksRequest.labels":           {a(pairs(0), pairs(3)), a(pairs(4))},
	"ListTasksRequest.created_from":     instant,
	"ListTasksRequest.created_before":   instant,
	"ListTasksRequest.page_size":        pageSize,
	"CancelTaskRequest.task_id":         id,
	"CancelTaskRequest.reason":          reason,
	"WatchTaskRequest.task_id":          id,
	"WatchTaskRequest.after_revision":   {a(int64(0), int64(math.MaxInt64)), a(int64(-1))},
	"PurgeTaskRequest.task_id":          id,
	"PurgeTaskRequest.reason":           reason,

	"GetStepRequest.step_id":            id,
	"ListStepsRequest.task_id":          id,
	"ListStepsRequest.states":           states(6),
	"ListStepsRequest.page_size":        pageSize,
	"ListStepAttemptsRequest.step_id":   id,
	"ListStepAttemptsRequest.page_size": pageSize,
	"RetryStepRequest.step_id":          id,
	"RetryStepRequest.reason":           reason,
	"ResolveStepRequest.step_id":        id,
	"ResolveStepRequest.reason":         reason,
	"CompleteStepRequest.step_id":       id,
	"CompleteStepRequest.reason":        reason,

	"BulkRetryStepsRequest.namespace":       namespace,
	"BulkRetryStepsRequest.filter":          {a(&pb.BulkRetryFilter{TaskIds: []string{"16384"}}), a(nil)},
	"BulkRetryStepsRequest.max_steps":       {a(int32(1), int32(1000)), a(int32(0), int32(1001))},
	"BulkRetryStepsRequest.spread_duration": {a(secs(0), secs(86400)), a(secs(-1), nanos(86400_000_000_001))},
	"BulkRetryStepsRequest.reason":          reason,
	"BulkRetryFilter.handlers":              {a(many(100, "h")), a(many(101, "h"))},
	"BulkRetryFilter.error_codes":           {a(many(100, "E")), a(many(101, "E"))},
	"BulkRetryFilter.template_name":         {a("t", rep("a", 255)), a("", rep("a", 256))},
	"BulkRetryFilter.task_ids":              {a(many(1000, "16384")), a(many(1001, "16384"), []string{"x"})},
	"BulkRetryFilter.failed_from":           instant,
	"BulkRetryFilter.failed_before":         instant,

	"Template.namespace":                 namespace,
	"Template.name":                      name,
	"Template.version":                   version,
	"Template.description":               {a("", rep("a", 4096)), a(rep("a", 4097))},
	"Template.steps":                     someOf,
	"TemplateRef.name":                   name,
	"TemplateRef.version":                version,
	"RegisterTemplateRequest.template":   {a(template()), a(nil)},
	"GetTemplateRequest.namespace":       namespace,
	"GetTemplateRequest.template":        {a(&pb.TemplateRef{Name: "t"}), a(nil)},
	"ListTemplatesRequest.namespace":     namespace,
	"ListTemplatesRequest.name":          {a("t", rep("a", 255)), a("", rep("a", 256))},
	"ListTemplatesRequest.page_size":     pageSize,
	"StepDefinition.name":                name,
	"StepDefinition.handler":             optName,
	"StepDefinition.depends_on":          {a(many(0, ""), many(10000, "p")), a(many(10001, "p"))},
	"StepDefinition.retry_limit":         {a(int32(1), int32(1000)), a(int32(0), int32(-1), int32(1001))},
	"StepDefinition.max_retry_after":     policy,
	"StepDefinition.lease":               lease,
	"StepDefinition.max_lost_leases":     {a(int32(1), int32(100)), a(int32(0), int32(101))},
	"StepDefinition.max_elapsed":         above0,
	"StepDefinition.circuit":             optName,
	"StepDefinition.priority":            inScope,
	"StepDefinition.non_retryable_codes": codes,
	"BackoffPolicy.initial":              policy,
	"BackoffPolicy.multiplier":           {a(1.0, 1.5, 100.0), a(0.99, 0.0, -1.0, 100.01, math.NaN(), math.Inf(1))},
	"BackoffPolicy.max":                  policy,
	"BackoffPolicy.jitter":               {a(0.0, 0.1, 1.0), a(-0.01, 1.01, math.NaN(), math.Inf(1))},
	"StepOverride.name":                  name,
	"StepOverride.retry_limit":           {a(int32(1), int32(1000)), a(int32(0), int32(1001))},
	"StepOverride.max_retry_after":       policy,
	"StepOverride.lease":                 lease,
	"StepOverride.max_lost_leases":       {a(int32(1), int32(100)), a(int32(0), int32(101))},
	"StepOverride.max_elapsed":           above0,
	"StepOverride.priority":              inScope,
	"NonRetryableCodes.codes":            codes,

	"ReadyStepsRequest.namespace":             namespace,
	"ReadyStepsRequest.worker_id":             printable,
	"ReadyStepsRequest.instance_id":           printable,
	"ReadyStepsRequest.handlers":              subscriptions(),
	"ReadyStepsRequest.max_in_flight":         {a(int32(1), int32(10000)), a(int32(0), int32(-1), int32(10001))},
	"ReadyStepsRequest.labels":                labels,
	"ReadyStepsRequest.build_id":              text255,
	"ReadyStepsRequest.client_info":           text255,
	"ReadyStepsRequest.heartbeat_interval":    {a(secs(5), secs(60)), a(nanos(4_999_999_999), nanos(60_000_000_001))},
	"ReadyStepsRequest.delivery_timeout":      {a(secs(1), secs(60)), a(nanos(999_999_999), nanos(60_000_000_001))},
	"ReadyStepsRequest.held_lease_tokens":     tokens,
	"HandlerSubscription.name":                name,
	"HandlerSubscription.max_in_flight":       {a(int32(1), int32(10000)), a(int32(0), int32(10001))},
	"PollReadyStepsRequest.namespace":         namespace,
	"PollReadyStepsRequest.worker_id":         printable,
	"PollReadyStepsRequest.instance_id":       printable,
	"PollReadyStepsRequest.handlers":          subscriptions(),
	"PollReadyStepsRequest.max_in_flight":     {a(int32(1), int32(10000)), a(int32(0), int32(10001))},
	"PollReadyStepsRequest.labels":            labels,
	"PollReadyStepsRequest.build_id":          text255,
	"PollReadyStepsRequest.client_info":       text255,
	"PollReadyStepsRequest.wait_duration":     wait,
	"PollReadyStepsRequest.delivery_timeout":  {a(secs(1), secs(60)), a(nanos(999_999_999), nanos(60_000_000_001))},
	"PollReadyStepsRequest.held_lease_tokens": tokens,
	"PollReadyStepsRequest.max_steps":         {a(int32(1), int32(1000)), a(int32(0), int32(1001))},
	"ReportStepResultRequest.lease_token":     token,
	"Failure.error_code":                      {a("", rep("a", 255)), a(rep("a", 256))},
	"Failure.http_status":                     {a(int32(0), int32(999)), a(int32(-1), int32(1000))},
	"StepRetryableFailure.retry_after":        {a(secs(0), secs(20), secs(3155760000)), a(nanos(-1), secs(-5), secs(3155760001), secs(315576000000), secs(1e18))},
	"StepRetryableFailure.retry_at":           instant,
	"StepRetryableFailure.reach":              {a(pb.Reach_REACH_UNSPECIFIED, pb.Reach_REACH_CIRCUIT), a(pb.Reach(3), pb.Reach(-1))},
	"StepRetryableFailure.accounting":         {a(pb.Accounting_ACCOUNTING_UNSPECIFIED, pb.Accounting_ACCOUNTING_SKIP), a(pb.Accounting(3))},
	"StepRetryableFailure.blame":              {a(pb.Blame_BLAME_UNSPECIFIED, pb.Blame_BLAME_STEP), a(pb.Blame(4), pb.Blame(-1))},
	"ReportStepResultRequest.observations":    {a(observations(0), observations(16)), a(observations(17))},
	"CircuitObservation.circuit":              name,
	"CircuitObservation.calls":                upTo(10000),
	"CircuitObservation.failed_calls":         {a(int32(0), int32(1)), a(int32(-1))},
	"CircuitObservation.slow_calls":           {a(int32(0), int32(1)), a(int32(-1))},
	"BatchReportStepResultsRequest.reports":   {a(reports(1), reports(1000)), a(reports(0), reports(1001))},
	"HeartbeatStepsRequest.heartbeats":        {a(heartbeats(1), heartbeats(1000)), a(heartbeats(0), heartbeats(1001))},
	"StepHeartbeat.lease_token":               token,
	"ReleaseStepsRequest.releases":            {a(releases(1), releases(1000)), a(releases(0), releases(1001))},
	"StepRelease.lease_token":                 token,
	"StepRelease.delay":                       {a(secs(0), secs(86400)), a(secs(-1), nanos(86400_000_000_001))},
	"DrainWorkerRequest.namespace":            namespace,
	"DrainWorkerRequest.worker_id":            printable,
	"DrainWorkerRequest.instance_id":          printable,
	"DrainWorkerRequest.deadline":             instant,
	"GetDependencyResultsRequest.lease_token": token,
	"GetDependencyResultsRequest.step_names":  {a(many(0, ""), many(10000, "p")), a(many(10001, "p"))},
	"GetDependencyResultsRequest.page_size":   pageSize,
	"ListWorkersRequest.namespace":            namespace,
	"ListWorkersRequest.handler":              {a("h", rep("a", 255)), a("", rep("a", 256))},
	"ListWorkersRequest.page_size":            pageSize,

	"CircuitPolicy.window_duration":            {a(secs(1), secs(3600)), a(secs(0), nanos(999_999_999), nanos(3600_000_000_001))},
	"CircuitPolicy.min_observations":           upTo(1000000),
	"CircuitPolicy.failure_rate_threshold":     share,
	"CircuitPolicy.slow_call_duration":         {a(nanos(1), secs(3600)), a(secs(0), secs(-1), nanos(3600_000_000_001))},
	"CircuitPolicy.slow_rate_threshold":        share,
	"CircuitPolicy.min_failing_workers":        upTo(64),
	"CircuitPolicy.open_duration":              opening,
	"CircuitPolicy.max_open_duration":          opening,
	"CircuitPolicy.max_probes":                 upTo(100),
	"CircuitPolicy.close_after_successes":      upTo(1000),
	"CircuitPolicy.recovery_wave":              upTo(10000),
	"CircuitPolicy.max_in_flight":              upTo(100000),
	"CircuitPolicy.rate":                       {a(0.001, 0.5, 100000.0), a(0.0, -1.0, 0.0009, 100000.1, math.NaN(), math.Inf(1))},
	"GetCircuitRequest.namespace":              namespace,
	"GetCircuitRequest.circuit":                orEmpty,
	"ListCircuitsRequest.namespace":            namespace,
	"ListCircuitsRequest.states":               states(5),
	"ListCircuitsRequest.min_waiting_steps":    {a(int32(0), int32(10000)), a(int32(-1), int32(10001))},
	"ListCircuitsRequest.page_size":            pageSize,
	"SetCircuitPolicyRequest.namespace":        namespace,
	"SetCircuitPolicyRequest.circuit":          orEmpty,
	"SetCircuitPolicyRequest.update_mask":      {a(mask(), mask("window_duration", "rate"), mask(fieldsOfAPolicy()...)), a(mask(""), mask("*"), mask("windowDuration"), mask("window_duration.seconds"), mask("rate", "x"))},
	"SetCircuitPolicyRequest.reason":           reason,
	"HoldCircuitRequest.namespace":             namespace,
	"HoldCircuitRequest.circuit":               name,
	"HoldCircuitRequest.reason":                {a("r", "because\nof this", rep("a", 1024)), a("", rep("a", 1025), "\x00")},
	"HoldCircuitRequest.starts_at":             instant,
	"HoldCircuitRequest.ends_at":               instant,
	"ReleaseCircuitRequest.namespace":          namespace,
	"ReleaseCircuitRequest.circuit":            name,
	"ReleaseCircuitRequest.reason":             reason,
	"PauseHandlerRequest.namespace":            namespace,
	"PauseHandlerRequest.handler":              orEmpty,
	"PauseHandlerRequest.reason":               {a("r", "because\nof this", rep("a", 1024)), a("", rep("a", 1025), "\x00")},
	"PauseHandlerRequest.until":                instant,
	"ResumeHandlerRequest.namespace":           namespace,
	"ResumeHandlerRequest.handler":             orEmpty,
	"ResumeHandlerRequest.reason":              reason,
	"ListPausesRequest.namespace":              namespace,
	"ListPausesRequest.page_size":              pageSize,
	"ListCircuitEventsRequest.namespace":       namespace,
	"ListCircuitEventsRequest.circuit":         optName,
	"ListCircuitEventsRequest.recorded_from":   instant,
	"ListCircuitEventsRequest.recorded_before": instant,
	"ListCircuitEventsRequest.page_size":       pageSize,
	"WatchCircuitsRequest.namespace":           namespace,
	"WatchCircuitsRequest.circuits":            {a([]string{}, many(1000, "a"), []string{rep("a", 255)}), a(many(1001, "a"), []string{""}, []string{"a b"}, []string{rep("a", 256)})},
	"WatchCircuitsRequest.after_revision":      {a("", rep("a", 255)), a(rep("a", 256))},
}

func TestRulesHoldAtTheLimitAndRefuseBeyondIt(t *testing.T) {
	v := newValidator(t)
	for field, vals := range bounds {
		t.Run(field, func(t *testing.T) {
			message, fieldName, _ := strings.Cut(field, ".")
			base, ok := minimal[protoreflect.Name(message)]
			if !ok {
				t.Fatalf("no minimal %s", message)
			}
			for i, good := range vals.good {
				if err := v.Validate(with(t, base, fieldName, good)); err != nil {
					t.Errorf("good value %d (%.60v) is refused: %v", i, good, err)
				}
			}
			for i, bad := range vals.bad {
				err := v.Validate(with(t, base, fieldName, bad))
				if !blames(err, fieldName) {
					t.Errorf("bad value %d (%.60v): want a violation of %s, got %v", i, bad, fieldName, err)
				}
			}
		})
	}
}

func TestEveryRuleHasItsLineInTheTable(t *testing.T) {
	ruled := map[string]bool{}
	for _, file := range files {
		for i := range file.Messages().Len() {
			message := file.Messages().Get(i)
			for j := range message.Fields().Len() {
				field := message.Fields().Get(j)
				if proto.HasExtension(field.Options(), validate.E_Field) {
					ruled[fmt.Sprintf("%s.%s", message.Name(), field.Name())] = true
				}
			}
		}
	}
	for field := range ruled {
		if _, ok := bounds[field]; !ok {
			t.Errorf("%s bears a rule that no line of the table tries", field)
		}
	}
	for field := range bounds {
		if !ruled[field] {
			t.Errorf("the table tries %s, which bears no rule", field)
		}
	}
}

func TestMinimalRequestsPass(t *testing.T) {
	v := newValidator(t)
	for _, file := range files {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				input := service.Methods().Get(j).Input()
				t.Run(string(input.Name()), func(t *testing.T) {
					message, ok := minimal[input.Name()]
					if !ok {
						t.Fatalf("no minimal %s", input.Name())
					}
					if err := v.Validate(message); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

func TestRulesThatTouchSeveralFields(t *testing.T) {
	v := newValidator(t)
	byTemplate := &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "t"}}
	unnamed := inlineTask()
	unnamed.Name = nil
	for _, c := range []struct {
		name    string
		message proto.Message
		blamed  string // what the violation must name: a field, a oneof or a rule's id; empty: valid
	}{
		{"a task by template needs no name", &pb.TaskSubmission{Definition: byTemplate}, ""},
		{"a task of inline steps needs a name", unnamed, "task_submission.inline_needs_name"},
		{"a task needs a definition", &pb.TaskSubmission{Name: proto.String("t")}, "definition"},
		{"deadline after not_before", &pb.TaskSubmission{Definition: byTemplate, NotBefore: at(10), Deadline: at(11)}, ""},
		{"deadline equal to not_before", &pb.TaskSubmission{Definition: byTemplate, NotBefore: at(10), Deadline: at(10)}, "task_submission.deadline_after_not_before"},
		{"a report needs an outcome", &pb.ReportStepResultRequest{LeaseToken: "x"}, "outcome"},
		{"an empty permanent failure", &pb.ReportStepResultRequest{LeaseToken: "x", Outcome: &pb.ReportStepResultRequest_PermanentFailure{PermanentFailure: &pb.StepPermanentFailure{}}}, ""},
		{"any header at all", &pb.StepRetryableFailure{RetryHint: &pb.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: "soon\x00-1e99"}}, ""},
		{"a hint of no time at all", &pb.StepRetryableFailure{RetryHint: &pb.StepRetryableFailure_RetryAfter{RetryAfter: &durationpb.Duration{}}}, ""},
		{"a handler named twice", &pb.ReadyStepsRequest{WorkerId: "w", InstanceId: "i", MaxInFlight: 1, Handlers: append(handlers(2), handlers(1)...)}, "handlers"},
		{"a retry of everything", &pb.BulkRetryFilter{}, "bulk_retry_filter.not_empty"},
		{"a retry of everything that is parked", &pb.BulkRetryFilter{ParkedOnly: true}, "bulk_retry_filter.not_empty"},
		{"a retry since an instant", &pb.BulkRetryFilter{FailedFrom: at(0)}, ""},
		{"a bad report in a batch is judged alone", &pb.BatchReportStepResultsRequest{Reports: []*pb.ReportStepResultRequest{{}}}, ""},
		{"a bad heartbeat in a batch is judged alone", &pb.HeartbeatStepsRequest{Heartbeats: []*pb.StepHeartbeat{{}}}, ""},
		{"a bad release in a batch is judged alone", &pb.ReleaseStepsRequest{Releases: []*pb.StepRelease{{}}}, ""},
		{"a circuit that opens for as long as it may", &pb.CircuitPolicy{OpenDuration: dur(60), MaxOpenDuration: dur(60)}, ""},
		{"a circuit that opens for longer than it may", &pb.CircuitPolicy{OpenDuration: dur(60), MaxOpenDuration: dur(59)}, "circuit_policy.max_open_not_below_open"},
		{"a longest opening alone", &pb.CircuitPolicy{MaxOpenDuration: dur(1)}, ""},
		{"a policy that breaks a rule inside a request", &pb.SetCircuitPolicyRequest{Policy: &pb.CircuitPolicy{MaxProbes: proto.Int32(0)}}, "policy"},
		{"a hold that ends after it began", &pb.HoldCircuitRequest{Circuit: "c", Reason: "r", StartsAt: at(10), EndsAt: at(11)}, ""},
		{"a hold that ends as it begins", &pb.HoldCircuitRequest{Circuit: "c", Reason: "r", StartsAt: at(10), EndsAt: at(10)}, "hold_circuit_request.ends_after_start"},
		{"as many failed and slow calls as calls", &pb.CircuitObservation{Circuit: "c", Calls: 3, FailedCalls: 3, SlowCalls: 3}, ""},
		{"more failed calls than calls", &pb.CircuitObservation{Circuit: "c", Calls: 3, FailedCalls: 4}, "circuit_observation.within_calls"},
		{"more slow calls than calls", &pb.CircuitObservation{Circuit: "c", Calls: 3, SlowCalls: 4}, "circuit_observation.within_calls"},
		{"a bad task in a batch fails the batch", &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{inlineTask(), {}}}, "tasks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := v.Validate(c.message)
			if c.blamed == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if c.blamed != "" && !blames(err, c.blamed) {
				t.Errorf("want a violation of %s, got %v", c.blamed, err)
			}
		})
	}
}

// blames reports whether err is a violation that names what: the first part of its field path, or the id of its rule.
func blames(err error, what string) bool {
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		return false
	}
	for _, violation := range invalid.Violations {
		path := violation.Proto.GetField().GetElements()
		if len(path) > 0 && path[0].GetFieldName() == what || violation.Proto.GetRuleId() == what {
			return true
		}
	}
	return false
}
