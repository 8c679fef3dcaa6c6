package rpc_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/rpc"
)

func TestPausesOverTheWire(t *testing.T) {
	steps := pb.NewStepServiceClient(serve(t, rpc.Settings{}))
	refusal := func(err error) string {
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				return fmt.Sprint(status.Code(err), " ", info.GetReason(), " ", info.GetMetadata()["field"])
			}
		}
		return fmt.Sprint(err)
	}
	const space = "pauses-over-the-wire"
	for want, r := range map[string]*pb.PauseHandlerRequest{
		"InvalidArgument VALIDATION reason":  {Namespace: space, Handler: "h"},
		"InvalidArgument VALIDATION handler": {Namespace: space, Handler: "two words", Reason: "r"},
		"InvalidArgument VALIDATION until":   {Namespace: space, Handler: "h", Reason: "r", Until: timestamppb.New(time.Now().Add(-time.Minute))},
	} {
		if _, err := steps.PauseHandler(t.Context(), r); refusal(err) != want {
			t.Errorf("%v is answered %s, want %s", r, refusal(err), want)
		}
	}
	if _, err := steps.ListPauses(t.Context(), &pb.ListPausesRequest{Namespace: space, PageToken: "x"}); refusal(err) != "InvalidArgument BAD_PAGE_TOKEN page_token" {
		t.Error(refusal(err))
	}
	if a, err := steps.ResumeHandler(t.Context(), &pb.ResumeHandlerRequest{Namespace: space}); err != nil || a.GetPause() != nil {
		t.Errorf("resuming what nobody paused: %v, %v", a, err)
	}
	until := timestamppb.New(time.Now().Add(time.Hour).Truncate(time.Microsecond))
	set, err := steps.PauseHandler(t.Context(), &pb.PauseHandlerRequest{Namespace: space, Handler: "h", Reason: "why", Until: until})
	p := set.GetPause()
	if err != nil || p.GetNamespace() != space || p.GetHandler() != "h" || p.GetReason() != "why" || !proto.Equal(p.GetUntil(), until) || p.GetSince() == nil {
		t.Fatalf("pausing answers %v, %v", set, err)
	}
	list, err := steps.ListPauses(t.Context(), &pb.ListPausesRequest{Namespace: space})
	if err != nil || len(list.GetPauses()) != 1 || !proto.Equal(list.GetPauses()[0], p) {
		t.Errorf("listed is %v, %v", list, err)
	}
	ended, err := steps.ResumeHandler(t.Context(), &pb.ResumeHandlerRequest{Namespace: space, Handler: "h", Reason: "it is well"})
	if err != nil || !proto.Equal(ended.GetPause(), p) {
		t.Errorf("resuming answers %v, %v", ended, err)
	}
}
