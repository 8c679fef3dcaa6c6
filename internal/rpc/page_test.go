package rpc_test

import (
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/rpc"
	"github.com/taskerhq/tasker/internal/task"
)

// shelf is a list of n rows, of which row i has size(i) bytes. Its tokens are the number of the next row.
type shelf struct {
	n    int
	size func(int) int
	most int // rows that were asked for at once
	read int
}

func (s *shelf) fetch(r task.PageRequest) (page task.Page[task.View], err error) {
	from, _ := strconv.Atoi(r.Token)
	s.most = max(s.most, r.Limit())
	for i := from; i < min(from+r.Limit(), s.n); i++ {
		s.read++
		page.Items = append(page.Items, task.View{ID: task.NewID(0, int64(i+1)), Context: strings.Repeat("x", s.size(i))})
	}
	if end := from + r.Limit(); end < s.n {
		page.NextToken = strconv.Itoa(end)
	}
	return page, nil
}

// Whatever the rows weigh, every page can be carried, and all pages together are the list.
func TestPagesFitTheirAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		rows       int
		size       func(int) int
		page       int32
		first, max int // rows of the first page, at most rows read at once
	}{
		"light":          {1200, func(int) int { return 10 }, 1000, 1000, 1000},
		"default":        {1200, func(int) int { return 10 }, 0, 50, 50},
		"heavy":          {20, func(int) int { return 1 << 20 }, 1000, 3, 50},
		"one at a time":  {5, func(int) int { return 4 << 20 }, 1000, 1, 50},
		"heavy at times": {1200, func(i int) int { return i % 100 / 99 * (3 << 20) }, 200, 50, 200},
	} {
		s := &shelf{n: c.rows, size: c.size}
		req := &pb.ListTasksRequest{PageSize: c.page}
		seen := 0
		for first := true; first || req.GetPageToken() != ""; first = false {
			list, next, err := rpc.Collect(req, s.fetch)
			if err != nil {
				t.Fatal(err)
			}
			if first && len(list) != c.first {
				t.Errorf("%s: the first page has %d rows, want %d", name, len(list), c.first)
			}
			if size := proto.Size(&pb.ListTasksResponse{Tasks: list}); size > rpc.MaxFrame+100 && len(list) > 1 {
				t.Errorf("%s: %d bytes in an answer of %d rows", name, size, len(list))
			}
			for _, m := range list {
				if seen++; m.GetTaskId() != task.NewID(0, int64(seen)).String() {
					t.Fatalf("%s: row %d is %s", name, seen, m.GetTaskId())
				}
			}
			if len(list) == 0 {
				t.Fatalf("%s: an empty page at row %d", name, seen)
			}
			req.PageToken = next
		}
		if seen != s.n || s.most > c.max {
			t.Errorf("%s: %d rows of %d, up to %d at once", name, seen, s.n, s.most)
		}
	}
}

func TestASnapshotGoesInFramesThatFit(t *testing.T) {
	c := &engine.TaskChange{Revision: 7, Snapshot: true, Task: &task.View{ID: task.NewID(0, 1)}}
	for i := range 2500 {
		c.Steps = append(c.Steps, task.StepView{ID: task.NewID(0, 1).Step(i + 1), LastFailure: &task.Failure{Details: strings.Repeat("x", i%500*100)}})
	}
	frames := rpc.WatchFrames(c, 5)
	next := 1
	for i, f := range frames {
		s := f.GetSnapshot()
		revision := int64(5) // a snapshot that breaks off is resumed from before it
		if i == len(frames)-1 {
			revision = 7
		}
		if proto.Size(f) > rpc.MaxFrame+1000 || s.GetMore() != (i < len(frames)-1) || s.GetTask() == nil || f.GetRevision() != revision {
			t.Errorf("frame %d of %d: %d bytes, more %v", i, len(frames), proto.Size(f), s.GetMore())
		}
		for _, step := range s.GetSteps() {
			if want := task.NewID(0, 1).Step(next).String(); step.GetStepId() != want {
				t.Fatalf("step %s where %s belongs", step.GetStepId(), want)
			}
			next++
		}
	}
	if next != 2501 || len(frames) < 3 {
		t.Errorf("%d steps in %d frames", next-1, len(frames))
	}
	if empty := rpc.WatchFrames(&engine.TaskChange{Task: &task.View{}}, 0); len(empty) != 1 || empty[0].GetChange() == nil {
		t.Errorf("a change of no step: %v", empty)
	}
}
