package rpc_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/rpc"
)

func TestTheRunTimeoutIsReadFromHandlerConfig(t *testing.T) {
	for config, want := range map[string]time.Duration{
		`{}`: 0, `{"retries": 3}`: 0, `{"timeout": null}`: 0, `{"nested": {"timeout": 5}}`: 0, `{"Timeout": 5}`: 0,
		`{"timeout": 30}`: 30 * time.Second, `{"timeout": 0.25}`: 250 * time.Millisecond, `{"timeout":1e-9}`: time.Microsecond,
		`{"timeout": 31536000}`: 31536000 * time.Second, `{"time\u006fut": 2}`: 2 * time.Second, `{"timeout": 1.5e1}`: 15 * time.Second,
	} {
		got, err := rpc.RunTimeout(config)
		if err != nil || (got == nil) != (want == 0) || got != nil && *got != want {
			t.Errorf("%s: %v, %v", config, got, err)
		}
	}
	for _, config := range []string{
		`{"timeout": 0}`, `{"timeout": -1}`, `{"timeout": "30"}`, `{"timeout": true}`, `{"timeout": [30]}`, `{"timeout": 31536001}`,
		`{"timeout": 1e400}`, `{"timeout": 1e131071}`, `{"timeout": 1e-999999999}`,
	} {
		if got, err := rpc.RunTimeout(config); err == nil || !strings.Contains(err.Error(), "handler_config.timeout") {
			t.Errorf("%s: %v, %v", config, got, err)
		}
	}
}

func TestAContextIsHeldAgainstItsSchema(t *testing.T) {
	const schema = `{"type": "object", "required": ["user_id"], "properties": {"user_id": {"type": "integer", "minimum": 1}, "plan": {"enum": ["free", "pro"]}}}`
	for context, broken := range map[string]string{
		`{"user_id": 9007199254740993}`: "", `{"user_id": 1, "plan": "pro", "more": []}`: "",
		``: `lacks "user_id"`, `{"user_id": "x"}`: "context.user_id", `{"user_id": 0}`: "minimum", `{"user_id": 1, "plan": "secret"}`: "context.plan",
		`{"user_id": 1e999999999}`: "exponent",
	} {
		err := rpc.CheckContext(schema, context)
		if (err == nil) != (broken == "") || err != nil && !strings.Contains(err.Error(), broken) {
			t.Errorf("%s: %v", context, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error repeats the value: %v", err)
		}
	}
}

func TestSchemasThatAreRefused(t *testing.T) {
	for _, schema := range []string{
		`[]`, `{"type": 7}`, `{"type": "objekt"}`, `{"$ref": "http://127.0.0.1:1/other.json"}`, `{"$ref": "other.json"}`, `{"$ref": "file:///etc/passwd"}`,
		`{"$ref": "#/nowhere"}`, `{"pattern": "("}`, `{"multipleOf": 0}`, `{"minimum": 1e999999999}`, `{"$schema": "http://127.0.0.1:1/meta"}`,
	} {
		if err := rpc.CheckContext(schema, "{}"); err == nil || !strings.Contains(err.Error(), "context_schema") {
			t.Errorf("%s: %v", schema, err)
		}
	}
	if err := rpc.CheckContext(`{"$ref": "#/$defs/any", "$defs": {"any": {}}}`, "{}"); err != nil {
		t.Errorf("a reference within the document: %v", err)
	}
}

func TestTheSubmitDigestIsOfTheBody(t *testing.T) {
	digest := func(key string, change func(*pb.TaskSubmission)) []byte {
		sub := &pb.TaskSubmission{
			Name: proto.String("n"), IdempotencyKey: &key, Labels: map[string]string{"a": "1", "b": "2", "c": "3"},
			Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "t"}},
		}
		change(sub)
		d, err := rpc.SubmitDigest(sub)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	same := func(*pb.TaskSubmission) {}
	first := digest("k", same)
	if len(first) != 32 || !bytes.Equal(first, digest("other", same)) {
		t.Error("the key is part of the digest")
	}
	for name, change := range map[string]func(*pb.TaskSubmission){
		"name":    func(s *pb.TaskSubmission) { s.Name = proto.String("m") },
		"context": func(s *pb.TaskSubmission) { s.Context = "{}" },
		"label":   func(s *pb.TaskSubmission) { s.Labels["a"] = "2" },
		"version": func(s *pb.TaskSubmission) { s.GetTemplate().Version = proto.String("1.0.0") },
	} {
		if bytes.Equal(first, digest("k", change)) {
			t.Errorf("%s is not part of the digest", name)
		}
	}
}

// What is no message of its type must reach the rules, not end as an internal error.
func TestWhatCannotBeDecodedIsRefused(t *testing.T) {
	for name, wire := range map[string][]byte{
		"not UTF-8":  {0x0a, 0x02, 0xff, 0xfe},
		"cut short":  {0x0a, 0x7f, 'x'},
		"wrong type": {0x0a, 0x01},
		"mark":       {},
	} {
		m := &pb.GetTaskRequest{}
		if err := rpc.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		err := rpc.Check(m)
		if name == "mark" {
			if err == nil || strings.Contains(err.Error(), "cannot be read") {
				t.Errorf("an empty message: %v", err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "cannot be read") {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := &pb.GetTaskRequest{TaskId: "16384"}
	wire, err := rpc.Codec().Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	read := &pb.GetTaskRequest{}
	if err := rpc.Codec().Unmarshal(wire, read); err != nil || !proto.Equal(good, read) || rpc.Check(read) != nil {
		t.Errorf("a good message: %v, %v", read, err)
	}
}

func TestNoTextHoldsANul(t *testing.T) {
	for field, m := range map[string]proto.Message{
		"filter.error_codes[0]": &pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{ErrorCodes: []string{"a\x00"}}},
		"labels":                &pb.ListTasksRequest{Labels: map[string]string{"a": "\x00"}},
		"handler":               &pb.ListWorkersRequest{Handler: proto.String("a\x00")},
		"task.overrides[0].non_retryable_codes.codes[1]": &pb.SubmitTaskRequest{Task: &pb.TaskSubmission{
			Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "t"}},
			Overrides:  []*pb.StepOverride{{Name: "s", NonRetryableCodes: &pb.NonRetryableCodes{Codes: []string{"A", "B\x00"}}}},
		}},
	} {
		if err := rpc.Check(m); err == nil || !strings.Contains(err.Error(), field) || !strings.Contains(err.Error(), "NUL") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
