"""stub"""
class Summaries:
    def ended(self, *a): pass
    def all(self): return []
