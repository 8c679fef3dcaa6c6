package docs_test

import (
	"fmt"
	"testing"

	"github.com/taskerhq/tasker/internal/template"
)

// Every block of YAML is a template.
func TestYAML(t *testing.T) {
	for _, fence := range only(t, "yaml") {
		t.Run(fmt.Sprintf("%s:%d", fence.page, fence.line), func(t *testing.T) {
			if _, err := template.Parse(fence.page, []byte(fence.text), "page"); err != nil {
				t.Error(err)
			}
		})
	}
}
