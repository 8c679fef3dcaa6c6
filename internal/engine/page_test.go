package engine

import (
	"errors"
	"testing"

	"github.com/taskerhq/tasker/internal/task"
)

func TestPageTokenIsBoundToItsFilter(t *testing.T) {
	type key struct{ A, B int64 }
	token, err := pageToken("tasks of a", key{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	var got key
	if err := parsePageToken(token, "tasks of a", &got); err != nil || got != (key{1, 2}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := parsePageToken(token, "tasks of b", &got); !errors.Is(err, errPageToken()) {
		t.Errorf("got %v", err)
	}
	got = key{7, 7}
	if err := parsePageToken("", "tasks of a", &got); err != nil || got != (key{7, 7}) {
		t.Errorf("a first page has no token: %+v, %v", got, err)
	}
}

// Whatever comes as a token is read or refused with BAD_PAGE_TOKEN, and what is read is written the same way.
func FuzzPageToken(f *testing.F) {
	good, err := pageToken("filter", bulkKey{Task: 1 << 40, Step: 7})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", good, good[:len(good)-1], good + "A", "AAAAAAAAAAA", "====", "\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		var key bulkKey
		err := parsePageToken(token, "filter", &key)
		if err == nil && token != "" {
			var again bulkKey
			back, err := pageToken("filter", key)
			if err != nil || parsePageToken(back, "filter", &again) != nil || again != key {
				t.Errorf("%q reads as %+v, which does not come back", token, key)
			}
			return
		}
		if err != nil && !errors.Is(err, &task.Error{Reason: task.BadPageToken}) {
			t.Errorf("%q: %v", token, err)
		}
	})
}
