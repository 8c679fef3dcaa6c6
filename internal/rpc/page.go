package rpc

import (
	"google.golang.org/protobuf/proto"

	"github.com/taskerhq/tasker/internal/task"
)

// pages is how every list is asked for.
type pages interface {
	GetPageSize() int32
	GetPageToken() string
}

func page(r pages) task.PageRequest {
	return task.PageRequest{Size: int(r.GetPageSize()), Token: r.GetPageToken()}
}

// firstChunk is how many rows of a page are read first. Rows are small as a rule, and a page is then read in two or three
// chunks; but some hold a failure's details of up to 1 MiB, and a thousand of those must never be in memory.
const firstChunk = 50

// collect reads a page of messages, as many as an answer can carry. A short page is no end: its token tells.
func collect[V any, M proto.Message](r pages, fetch func(task.PageRequest) (task.Page[V], error), message func(*V) M) (list []M, next string, err error) {
	var (
		want  = page(r).Limit()
		chunk = firstChunk
		room  = maxBatch
	)
	next = r.GetPageToken()
	for len(list) < want {
		size := min(chunk, want-len(list))
		part, err := fetch(task.PageRequest{Size: size, Token: next})
		if err != nil {
			return nil, "", err
		}
		add, bytes := messages(part.Items, message), 0
		for _, m := range add {
			bytes += proto.Size(m)
		}
		switch {
		case bytes > room && len(list) > 0:
			return list, next, nil // the chunk before is all that fits
		case bytes > room && size > 1:
			chunk = max(size/4, 1)
			continue
		}
		list, next, room = append(list, add...), part.NextToken, room-bytes
		if next == "" || len(part.Items) < size {
			break
		}
		if bytes < room/8 {
			chunk *= 4
		}
	}
	return list, next, nil
}

// messages translates the items of a page.
func messages[V, M any](items []V, message func(*V) M) []M {
	list := make([]M, len(items))
	for i := range items {
		list[i] = message(&items[i])
	}
	return list
}
