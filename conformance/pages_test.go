package conformance_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// walk goes through all pages of a list and checks that nothing comes twice.
func walk(t *testing.T, fetch func(token string) (ids []string, next string, err error)) []string {
	t.Helper()
	var all []string
	seen := map[string]bool{}
	for token, pages := "", 0; ; pages++ {
		ids, next, err := fetch(token)
		if err != nil || pages > 200 {
			t.Fatalf("page %d: %v", pages, err)
		}
		for _, id := range ids {
			if seen[id] {
				t.Errorf("%s comes twice", id)
			}
			seen[id] = true
		}
		all = append(all, ids...)
		if next == "" {
			return all
		}
		token = next
	}
}

// Every list: all of it, once, in pages of any size, and its tokens serve no other filter.
func TestPages_EveryListGoesThroughAllOnceAndBindsItsTokens(t *testing.T) {
	s := start(t)
	w := s.worker(100)
	x := s.one(w, retryLimit(100), backoff(0, 0, 1))
	for range 6 {
		s.report(retryable(x))
		x = w.next()
	}
	var defs []*pb.StepDefinition
	for i := range 7 {
		defs = append(defs, with(step(fmt.Sprint("s", i)), handlerOf("nobody")))
		s.submit(inline(with(step("s"), handlerOf("nobody"))))
		must[*pb.RegisterTemplateResponse](t)(s.register(&pb.Template{Name: fmt.Sprint("tpl", i/3), Description: fmt.Sprint(i), Steps: []*pb.StepDefinition{step("a")}}))
		s.open(request(fmt.Sprint("worker", i), 1, "other"))
	}
	id := s.submit(inline(defs...)).GetTaskId()
	for _, size := range []int32{1, 2, 3, 7, 8, 50} {
		for name, c := range map[string]struct {
			want  int
			fetch func(token string) (ids []string, next string, err error)
		}{
			"ListTasks": {9, func(token string) (ids []string, next string, err error) {
				r, err := s.tasks.ListTasks(s.within(), &pb.ListTasksRequest{PageSize: size, PageToken: token})
				for _, x := range r.GetTasks() {
					ids = append(ids, x.GetTaskId())
				}
				return ids, r.GetNextPageToken(), err
			}},
			"ListSteps": {7, func(token string) (ids []string, next string, err error) {
				r, err := s.steps.ListSteps(s.within(), &pb.ListStepsRequest{TaskId: id, PageSize: size, PageToken: token})
				for _, x := range r.GetSteps() {
					ids = append(ids, x.GetStepId())
				}
				return ids, r.GetNextPageToken(), err
			}},
			"ListStepAttempts": {7, func(token string) (ids []string, next string, err error) {
				r, err := s.steps.ListStepAttempts(s.within(), &pb.ListStepAttemptsRequest{StepId: x.GetStepId(), PageSize: size, PageToken: token})
				for _, x := range r.GetAttempts() {
					ids = append(ids, fmt.Sprint(x.GetDispatch()))
				}
				return ids, r.GetNextPageToken(), err
			}},
			"ListTemplates": {7, func(token string) (ids []string, next string, err error) {
				r, err := s.templates.ListTemplates(s.within(), &pb.ListTemplatesRequest{PageSize: size, PageToken: token})
				for _, x := range r.GetTemplates() {
					ids = append(ids, x.GetName()+"@"+x.GetVersion())
				}
				return ids, r.GetNextPageToken(), err
			}},
			"ListWorkers": {8, func(token string) (ids []string, next string, err error) {
				r, err := s.workers.ListWorkers(s.within(), &pb.ListWorkersRequest{PageSize: size, PageToken: token})
				for _, x := range r.GetWorkers() {
					ids = append(ids, x.GetWorkerId())
				}
				return ids, r.GetNextPageToken(), err
			}},
		} {
			t.Run(fmt.Sprint(name, " by ", size), func(t *testing.T) {
				equal(t, "items", len(walk(t, c.fetch)), c.want)
				_, _, err := c.fetch("nonsense")
				refused(t, err, codes.InvalidArgument, "BAD_PAGE_TOKEN")
			})
		}
	}
	page := must[*pb.ListTasksResponse](t)(s.tasks.ListTasks(s.within(), &pb.ListTasksRequest{PageSize: 1}))
	for name, r := range map[string]*pb.ListTasksRequest{
		"another namespace": {Namespace: "other"}, "a state": {States: []pb.TaskState{pb.TaskState_TASK_STATE_PENDING}},
		"a template": {Template: &pb.TemplateRef{Name: "tpl0"}}, "a label": {Labels: map[string]string{"a": "b"}},
	} {
		r.PageToken = page.GetNextPageToken()
		_, err := s.tasks.ListTasks(s.within(), r)
		t.Run(name, func(t *testing.T) { refused(t, err, codes.InvalidArgument, "BAD_PAGE_TOKEN") })
	}
	_, err := s.steps.ListSteps(s.within(), &pb.ListStepsRequest{TaskId: id, PageToken: page.GetNextPageToken()})
	refused(t, err, codes.InvalidArgument, "BAD_PAGE_TOKEN")
}

func TestPages_TasksAreFilteredByStateTemplateLabelsAndTime(t *testing.T) {
	s := start(t)
	w := s.worker(10)
	must[*pb.RegisterTemplateResponse](t)(s.register(&pb.Template{Name: "tpl", Steps: []*pb.StepDefinition{step("s")}}))
	byTemplate := s.submit(fromTemplate("tpl"))
	s.report(success(w.next(), ""))
	labelled := inline(step("s"))
	labelled.Labels = map[string]string{"a": "1", "b": "2"}
	withLabels := s.submit(labelled)
	s.beat(w.next())
	last := s.submit(inline(with(step("s"), handlerOf("nobody"))))
	list := func(r *pb.ListTasksRequest) string {
		t.Helper()
		r.PageSize = 1
		ids := walk(t, func(token string) (ids []string, next string, err error) {
			r.PageToken = token
			resp, err := s.tasks.ListTasks(s.within(), r)
			for _, x := range resp.GetTasks() {
				ids = append(ids, x.GetTaskId())
			}
			return ids, resp.GetNextPageToken(), err
		})
		return fmt.Sprint(ids)
	}
	ids := func(tasks ...*pb.Task) string {
		var list []string
		for _, x := range tasks {
			list = append(list, x.GetTaskId())
		}
		return fmt.Sprint(list)
	}
	equal(t, "all, the newest first", list(&pb.ListTasksRequest{}), ids(last, withLabels, byTemplate))
	equal(t, "complete", list(&pb.ListTasksRequest{States: []pb.TaskState{pb.TaskState_TASK_STATE_COMPLETE}}), ids(byTemplate))
	equal(t, "pending or in progress", list(&pb.ListTasksRequest{States: []pb.TaskState{pb.TaskState_TASK_STATE_PENDING, pb.TaskState_TASK_STATE_IN_PROGRESS}}), ids(last, withLabels))
	equal(t, "by template", list(&pb.ListTasksRequest{Template: &pb.TemplateRef{Name: "tpl"}}), ids(byTemplate))
	equal(t, "by version", list(&pb.ListTasksRequest{Template: &pb.TemplateRef{Name: "tpl", Version: proto.String("0.1.1")}}), ids())
	equal(t, "by labels", list(&pb.ListTasksRequest{Labels: map[string]string{"a": "1", "b": "2"}}), ids(withLabels))
	equal(t, "by a label that differs", list(&pb.ListTasksRequest{Labels: map[string]string{"a": "1", "b": "3"}}), ids())
	equal(t, "from", list(&pb.ListTasksRequest{CreatedFrom: withLabels.GetCreatedAt()}), ids(last, withLabels))
	equal(t, "before", list(&pb.ListTasksRequest{CreatedBefore: withLabels.GetCreatedAt()}), ids(byTemplate))
	equal(t, "in the future", list(&pb.ListTasksRequest{CreatedFrom: timestamppb.New(time.Now().Add(time.Hour))}), ids())
	_, err := s.tasks.ListTasks(s.within(), &pb.ListTasksRequest{Labels: map[string]string{"a": "", "b": "", "c": "", "d": ""}})
	invalid(t, err)
}
