package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func testPrinter(format string) (*printer, *bytes.Buffer) {
	out := &bytes.Buffer{}
	c := &cli{stdout: out, stderr: io.Discard, getenv: func(string) string { return "" }}
	return newPrinter(c, format), out
}

func failedSteps() *taskerv1.ListStepsResponse {
	return &taskerv1.ListStepsResponse{Steps: []*taskerv1.Step{
		{
			StepId: "16385", TaskId: "16384", Name: "create_user_account", State: taskerv1.StepState_STEP_STATE_ERROR,
			DependenciesSatisfied: true, Attempts: 2, RetryLimit: 5, Dispatches: 3, LostLeases: 1,
			BackoffRequestDuration: durationpb.New(1500 * time.Millisecond),
			NextRetryAt:            timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)),
			WaitingFor:             taskerv1.WaitingFor_WAITING_FOR_BACKOFF,
			WaitingUntil:           timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)),
			LastFailure:            &taskerv1.Failure{ErrorCode: "HTTP_\x1b[31m503", Message: "two\nlines: \"quoted\" \u2028 9007199254740993"},
		},
		{StepId: "16386", TaskId: "16384", Name: "setup_billing", State: taskerv1.StepState_STEP_STATE_PENDING, WaitingFor: taskerv1.WaitingFor_WAITING_FOR_DEPENDENCIES, RetryLimit: 4, BlockedBy: []string{"create_user_account"}},
	}}
}

func TestTableBearsTheWordsOfTheSQLSurface(t *testing.T) {
	p, out := testPrinter("table")
	if err := p.readiness(failedSteps().GetSteps(), false).print(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), out)
	}
	want := "step_id name current_state dependencies_satisfied retry_eligible ready_for_execution waiting_for waiting_until attempts retry_limit " +
		"backoff_request_seconds next_retry_at dispatches lost_leases error_code blocked_by"
	if got := strings.Join(strings.Fields(lines[0]), " "); got != want {
		t.Errorf("heading is %s", got)
	}
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC))
	want = "16385 create_user_account error true false false backoff " + instant(at) + " 2 5 1.5 " + instant(at) + " 3 1 HTTP_ [31m503"
	if got := strings.Join(strings.Fields(lines[1]), " "); got != want {
		t.Errorf("row is  %s\nwant    %s", got, want)
	}
	for _, line := range lines[1:] {
		if column := strings.Index(lines[0], "current_state"); !strings.HasPrefix(line[column:], "error") && !strings.HasPrefix(line[column:], "pending") {
			t.Errorf("the columns are not aligned:\n%s", out)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("colours, or somebody's escape sequence, where there is no terminal")
	}
}

func TestTerminalBreaksHeadings(t *testing.T) {
	for head, want := range map[string]string{
		"dependencies_satisfied": "dependencies_|satisfied", "retry_limit": "retry_|limit", "name": "name", "next_retry_at": "next_|retry_at",
	} {
		if got := strings.Join(breakHead(head, minHead), "|"); got != want {
			t.Errorf("%s is broken as %s, want %s", head, got, want)
		}
	}
	p, _ := testPrinter("table")
	p.terminal, p.colour = true, true
	lines := p.readiness(failedSteps().GetSteps(), false).lines()
	if len(lines) < 4 || !strings.Contains(strings.Join(lines, "\n"), "\x1b[31merror") {
		t.Errorf("on a terminal the table is\n%s", strings.Join(lines, "\n"))
	}
}

func TestLiveTableReplacesItself(t *testing.T) {
	p, out := testPrinter("table")
	live := &live{printer: p}
	if err := live.draw([]string{"one", "two"}); err != nil {
		t.Fatal(err)
	}
	if err := live.draw([]string{strings.Repeat("x", 200)}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "\x1b[Jone\ntwo\n\x1b[2A\x1b[J"+strings.Repeat("x", 79)+"…\n"; got != want {
		t.Errorf("drawn is %q, want %q", got, want)
	}
	out.Reset()
	if err := live.draw(make([]string, 100)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(out.String(), "\n"); got != 23 || !strings.Contains(out.String(), "78 more") {
		t.Errorf("%d lines on a terminal of 24: %q", got, out)
	}
}

func TestJSONAndYAMLAreTheMessage(t *testing.T) {
	sent := failedSteps()
	for format, toJSON := range map[string]func([]byte) ([]byte, error){
		"json": func(body []byte) ([]byte, error) { return body, nil },
		"yaml": func(body []byte) ([]byte, error) {
			var value any
			if err := yaml.Unmarshal(body, &value); err != nil {
				return nil, err
			}
			return json.Marshal(value)
		},
	} {
		p, out := testPrinter(format)
		if err := p.print(sent, nil); err != nil {
			t.Fatal(err)
		}
		body, err := toJSON(out.Bytes())
		if err != nil {
			t.Fatalf("%s: %v\n%s", format, err, out)
		}
		var got taskerv1.ListStepsResponse
		if err := protojson.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v\n%s", format, err, body)
		}
		if !proto.Equal(&got, sent) {
			t.Errorf("%s holds another message:\n%s", format, out)
		}
	}
}

func TestJSONSpellsEverythingOutTheSameWayAlways(t *testing.T) {
	body, err := answerJSON(&taskerv1.BulkRetryStepsResponse{}, "  ")
	if err != nil {
		t.Fatal(err)
	}
	if want := "{\n  \"retriedSteps\": 0,\n  \"nextPageToken\": \"\"\n}"; string(body) != want {
		t.Errorf("got %s, want %s", body, want)
	}
}

func TestStreamsAreOneLineOrOneDocumentEach(t *testing.T) {
	for format, want := range map[string]string{
		"json": `{"purgedSteps":1}` + "\n" + `{"purgedSteps":2}` + "\n",
		"yaml": "purgedSteps: 1\n---\npurgedSteps: 2\n",
	} {
		p, out := testPrinter(format)
		for steps := range 2 {
			if err := p.stream(&taskerv1.PurgeTaskResponse{PurgedSteps: int32(steps + 1)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if out.String() != want {
			t.Errorf("%s is %q, want %q", format, out, want)
		}
	}
}

func TestWordsOfEnumsGoBothWays(t *testing.T) {
	if got := word(taskerv1.StepState_STEP_STATE_RESOLVED_MANUALLY); got != "resolved_manually" {
		t.Errorf("got %s", got)
	}
	if got := word(taskerv1.DelaySource_DELAY_SOURCE_UNSPECIFIED); got != "" {
		t.Errorf("got %s", got)
	}
	if got := word(taskerv1.StepState(99)); got != "99" {
		t.Errorf("got %s", got)
	}
	state, err := enumOf[taskerv1.TaskState]("in_progress")
	if err != nil || state != taskerv1.TaskState_TASK_STATE_IN_PROGRESS {
		t.Errorf("got %v, %v", state, err)
	}
	for _, text := range []string{"", "unspecified", "IN_PROGRESS", "done"} {
		if _, err := enumOf[taskerv1.TaskState](text); err == nil || !strings.Contains(err.Error(), "pending, in_progress, complete, error, cancelled") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestInstantsAreAbsoluteOrFromNow(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]string{
		"2026-01-31T12:00:00Z": "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5+09:00": "2026-01-31T03:00:00.5Z", "10m": "2026-01-02T03:14:05Z", "-24h": "2026-01-01T03:04:05Z",
	} {
		got, err := parseInstant("at", text, now)
		if err != nil || got.AsTime().Format(time.RFC3339Nano) != want {
			t.Errorf("%s is %v, %v; want %s", text, got.AsTime(), err, want)
		}
	}
	if got, err := parseInstant("at", "", now); got != nil || err != nil {
		t.Errorf("nothing is %v, %v", got, err)
	}
	for _, text := range []string{"tomorrow", "2026-01-31", "10"} {
		if _, err := parseInstant("at", text, now); exitCode(err) != exitUsage {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestLabelsAreKeysAndValues(t *testing.T) {
	got, err := parsePairs("label", []string{"a=1", "b=", "c=x=y"})
	if err != nil || got["a"] != "1" || got["b"] != "" || got["c"] != "x=y" || len(got) != 3 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range [][]string{{"a"}, {"=1"}, {"a=1", "a=2"}} {
		if _, err := parsePairs("label", bad); exitCode(err) != exitUsage {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// exitCode is the exit status that an error ends the program with.
func exitCode(err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	return 1
}

func TestRefusalsAreExplained(t *testing.T) {
	withDetails := func(code codes.Code, message string, reason string, metadata map[string]string, violations map[string]string) error {
		refused := status.New(code, message)
		var err error
		bad := &errdetails.BadRequest{}
		for field, description := range violations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: field, Description: description})
		}
		refused, err = refused.WithDetails(&errdetails.ErrorInfo{Domain: "tasker", Reason: reason, Metadata: metadata}, bad,
			&errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		return refused.Err()
	}
	r := &remote{address: "127.0.0.1:1", timeout: 3 * time.Second}
	for _, c := range []struct {
		name string
		err  error
		want []string
	}{
		{
			"reason, fields, facts, wait and hint",
			fmt.Errorf("submitting the task: %w", withDetails(codes.NotFound, "there is no such template", "TEMPLATE_NOT_FOUND",
				map[string]string{"name": "x", "version": "", "field": "a"}, map[string]string{"a": "must be b"})),
			[]string{
				"submitting the task: there is no such template (TEMPLATE_NOT_FOUND)\n", "\n  name: x\n", "\n  a: must be b\n", "after 2s",
				"\nhint: `tasker templates` lists", "tasker apply -f",
			},
		},
		{"a reason that is not known here", withDetails(codes.Aborted, "later", "NEW_REASON", nil, nil), []string{"later (NEW_REASON)\n"}},
		{"nobody there", status.Error(codes.Unavailable, "connection refused"), []string{"no server answers at 127.0.0.1:1: connection refused\n", "hint: start one with `tasker serve`"}},
		{"no answer", fmt.Errorf("x: %w", status.Error(codes.DeadlineExceeded, "")), []string{"x: no answer within 3s; whether the call took effect is unknown"}},
		{"interrupted", status.Error(codes.Canceled, "context canceled"), []string{"interrupted"}},
		{"no details", status.Error(codes.Unimplemented, "unknown method"), []string{"unknown method (Unimplemented)"}},
		{"not a refusal", errors.New("plain"), []string{"plain"}},
	} {
		got := r.explain(c.err)
		if exitCode(got) != 1 {
			t.Errorf("%s: exit status %d", c.name, exitCode(got))
		}
		for _, want := range c.want {
			if !strings.Contains(got.Error()+"\n", want) {
				t.Errorf("%s: %q lacks %q", c.name, got, want)
			}
		}
		if strings.Contains(got.Error(), "rpc error") || strings.Contains(got.Error(), "version:") || strings.Contains(got.Error(), "field:") {
			t.Errorf("%s: %q says too much", c.name, got)
		}
	}
	if r.explain(nil) != nil {
		t.Error("an error out of nothing")
	}
}

func TestCommandLinesThatCannotBeUnderstood(t *testing.T) {
	for _, line := range []string{
		"submit", "submit --template x --file y", "submit --template x extra", "submit --template x --context []", "submit --template x --context {",
		"submit --template x -n 0", "submit --template x --label a", "submit --template x --not-before soon", "submit --template x --override a",
		"submit --template x --override a={\"nope\":1}", "submit --template x --priority high", "submit --nope",
		"apply", "apply -f -", "tasks --state done", "tasks --limit -1", "tasks x", "task nope", "task get", "task get x", "task get 0", "task get 1 2", "task get -o xml 1",
		"steps", "steps x", "steps --all 1", "steps 1 --state done", "step retry", "step retry --bulk 1", "step complete 1 --results []",
		"attempts", "template get", "circuits nope", "circuits --state shut", "circuits --limit -1", "circuits --waiting=many", "circuits --watch --page-token x",
		"circuit get", "circuits get a b", "circuits hold", "circuits hold a", "circuits hold a --reason r --from soon",
		"circuits hold a --reason r --until 1h --for 1h", "circuits hold a --reason r --for -1h", "circuits release", "circuits events a b",
		"circuits events --from soon", "circuits policy", "circuits policy a --default", "circuits policy a --set rate", "circuits policy a --set =1",
		"circuits policy a --set speed=1", "circuits policy a --set rate=fast", "circuits policy a --set window_duration=60",
		"circuits policy a --set max_probes=1.5", "circuits policy a --set suspend_budgets=maybe", "circuits policy a --unset speed",
		"circuits policy a --set rate=1 --unset rate", "circuits policy a --set rate=1 --set rate=2", "circuits policy a --reason r", "work -- true", "work --handler x", "work --handler x true --", "work --handler x=0 -- true",
		"work --handler x --max-in-flight 0 -- true", "work --handler x --handler x -- true", "work --handler x -- /nonexistent/command", "sql extra",
	} {
		t.Run(line, func(t *testing.T) {
			var out, err bytes.Buffer
			env := func(name string) string {
				if name == "TASKER_ADDRESS" {
					return "127.0.0.1:1"
				}
				return ""
			}
			code := run(context.Background(), strings.Fields(line), env, strings.NewReader(""), &out, &err)
			if code != exitUsage {
				t.Errorf("exit status %d, want %d; %s", code, exitUsage, err.String())
			}
			if !strings.HasPrefix(err.String(), "tasker: ") || strings.Contains(err.String(), "goroutine") {
				t.Errorf("said %q", err.String())
			}
		})
	}
}

func TestEnvironmentSpeaksWhereNoFlagDoes(t *testing.T) {
	for _, c := range []struct {
		name, line string
		env        map[string]string
		code       int
		want       string
	}{
		{"address from the environment", "tasks", map[string]string{"TASKER_ADDRESS": "127.0.0.1:2"}, 1, "no server answers at 127.0.0.1:2"},
		{"the flag wins", "tasks --address 127.0.0.1:3", map[string]string{"TASKER_ADDRESS": "127.0.0.1:2"}, 1, "no server answers at 127.0.0.1:3"},
		{"a bad value", "tasks", map[string]string{"TASKER_TIMEOUT": "long"}, exitUsage, "$TASKER_TIMEOUT"},
		{"a bad format", "tasks", map[string]string{"TASKER_OUTPUT": "xml"}, exitUsage, "table, json or yaml"},
		{"certificates", "tasks", map[string]string{"TASKER_CA_CERT": "/nonexistent"}, 1, "reading --ca-cert"},
		{"half a certificate", "tasks --client-cert x", nil, exitUsage, "go together"},
		{"a certificate that is not there", "tasks --client-cert x --client-key y", nil, 1, "reading --client-cert"},
		{"several addresses", "tasks --address 127.0.0.1:2,127.0.0.1:3", nil, 1, "no server answers"},
		{"an address without a port", "tasks --address a,b", nil, 1, "must be HOST:PORT"},
	} {
		var out, err bytes.Buffer
		code := run(t.Context(), strings.Fields(c.line), func(name string) string { return c.env[name] }, strings.NewReader(""), &out, &err)
		if code != c.code || !strings.Contains(err.String(), c.want) {
			t.Errorf("%s: exit status %d, said %q", c.name, code, err.String())
		}
	}
}

func TestCompletionIsOffered(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		var out, err bytes.Buffer
		if code := run(t.Context(), []string{"completion", shell}, func(string) string { return "" }, strings.NewReader(""), &out, &err); code != 0 || out.Len() < 1000 {
			t.Errorf("%s: exit status %d, %d bytes, said %q", shell, code, out.Len(), err.String())
		}
	}
}
