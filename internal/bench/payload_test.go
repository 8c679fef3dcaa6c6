package bench_test

import (
	"encoding/json"
	"testing"

	"github.com/taskerhq/tasker/internal/bench"
)

func TestPayload(t *testing.T) {
	for _, size := range []int{100, 4096, 512 << 10} {
		p := bench.Payload(size)
		if len(p) != size || !json.Valid([]byte(p)) {
			t.Errorf("a payload of %d bytes has %d, JSON: %t", size, len(p), json.Valid([]byte(p)))
		}
	}
}
