// Package docs_test runs what the README and docs/ tell a reader to type, on a real server process, so that no page can
// promise what does not work.
package docs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// root is the module's directory, seen from here.
const root = "../.."

// fence is a fenced block of a page.
type fence struct {
	// page is the file, from the module's root, and line its opening line.
	page string
	line int
	// language is the first word behind the opening fence, and note the rest: it says how the block is to be run.
	language, note string
	text           string
}

// pages are the README, the changelog and everything in docs/.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatal("no pages in docs/")
	}
	names := []string{"README.md", "CHANGELOG.md"}
	for _, path := range found {
		names = append(names, filepath.Join("docs", filepath.Base(path)))
	}
	return names
}

func read(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// fences are the blocks of a page, in order.
func fences(t *testing.T, page string) []fence {
	t.Helper()
	var found []fence
	var open *fence
	var lines []string
	for number, line := range strings.Split(read(t, page), "\n") {
		info, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case !isFence && open != nil:
			lines = append(lines, line)
		case !isFence:
		case open == nil:
			language, note, _ := strings.Cut(strings.TrimSpace(info), " ")
			open = &fence{page: page, line: number + 1, language: language, note: note}
			lines = nil
		default:
			open.text = strings.Join(lines, "\n") + "\n"
			found = append(found, *open)
			open = nil
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: the block is never closed", page, open.line)
	}
	return found
}

// only are the blocks of one language over all pages.
func only(t *testing.T, language string) []fence {
	t.Helper()
	var found []fence
	for _, page := range pages(t) {
		for _, fence := range fences(t, page) {
			if fence.language == language {
				found = append(found, fence)
			}
		}
	}
	if len(found) == 0 {
		t.Fatalf("no %s block on any page", language)
	}
	return found
}

// known says who takes the blocks of a language. A block that nobody takes would rot unseen.
var known = map[string]string{
	"sh":     "TestShell",
	"sql":    "TestSQL",
	"python": "TestPython",
	"yaml":   "TestYAML",
	"text":   "nobody: it is not for typing",
}

func TestEveryBlockIsTakenByATest(t *testing.T) {
	for _, page := range pages(t) {
		for _, fence := range fences(t, page) {
			if known[fence.language] == "" {
				t.Errorf("%s:%d: no test takes blocks of %q", fence.page, fence.line, fence.language)
			}
		}
	}
}
