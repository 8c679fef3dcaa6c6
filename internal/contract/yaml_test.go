package contract_test

import (
	"testing"
	"time"

	"buf.build/go/protoyaml"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// A template is written in YAML by people, so every setting must read as they would write it. Mappings become JSON
// objects before this point; here they are strings already.
func TestTemplateReadsFromYAML(t *testing.T) {
	const source = `
namespace: shop
name: user_registration
version: 1.4.0
description: Registers a user.
context_schema: '{"type": "object"}'
steps:
  - name: create_user_account
    retry_limit: 5
    retryable: true
    handler_config: '{"timeout": 30}'
  - name: send_billing_notification
    handler: notify
    depends_on: [create_user_account]
    retry_limit: 3
    retryable: false
    backoff: {initial: 500ms, multiplier: 1.5, max: 1m, jitter: 0}
    max_retry_after: 1h
    lease: 45s
    max_lost_leases: 2
    max_elapsed: 24h
    circuit: billing/eu
    priority: 0
    non_retryable_codes: [CARD_DECLINED]
`
	want := &pb.Template{
		Namespace:     "shop",
		Name:          "user_registration",
		Version:       proto.String("1.4.0"),
		Description:   "Registers a user.",
		ContextSchema: `{"type": "object"}`,
		Steps: []*pb.StepDefinition{
			{
				Name:          "create_user_account",
				RetryLimit:    proto.Int32(5),
				Retryable:     proto.Bool(true),
				HandlerConfig: `{"timeout": 30}`,
			},
			{
				Name:       "send_billing_notification",
				Handler:    proto.String("notify"),
				DependsOn:  []string{"create_user_account"},
				RetryLimit: proto.Int32(3),
				Retryable:  proto.Bool(false),
				Backoff: &pb.BackoffPolicy{
					Initial:    durationpb.New(500 * time.Millisecond),
					Multiplier: proto.Float64(1.5),
					Max:        durationpb.New(time.Minute),
					Jitter:     proto.Float64(0),
				},
				MaxRetryAfter:     durationpb.New(time.Hour),
				Lease:             durationpb.New(45 * time.Second),
				MaxLostLeases:     proto.Int32(2),
				MaxElapsed:        durationpb.New(24 * time.Hour),
				Circuit:           proto.String("billing/eu"),
				Priority:          proto.Int32(0),
				NonRetryableCodes: []string{"CARD_DECLINED"},
			},
		},
	}
	got := &pb.Template{}
	if err := protoyaml.Unmarshal([]byte(source), got); err != nil {
		t.Fatal(err)
	}
	if err := newValidator(t).Validate(got); err != nil {
		t.Error(err)
	}
	if !proto.Equal(want, got) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}
